"""Anything at all, sent to a running gateway: as packets, as requests, and as the payload of every command.

The examples are the same in each run; FUZZ_EXAMPLES=10000 tries more of them. What once hurt is in the corpus for ever.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as some

from tests.system.footprint import no_connections, rss_kib
from tests.system.rig import OUR_FAULT, Process, Rig, token, unique
from tests.system.talk import an_admin
from tests.system.test_bad_commands import WRONG
from tests.wire import Websocket, a_websocket, polling

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
GROWTH_KIB = 32 * 1024

fuzzing = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

PACKETS = (
    *("", "4", "40", "41", "42", "43", "44", "45", "46", "47", "0", "1", "2", "2probe", "3", "5", "6", "b4AAA=", "\x1e", "٤"),
    *('42["x"]', '421["x",{}]', '42/attendance,["x"]', "42/,[]", "42[[]]", '42{"x":1}', "43[]", "439999999999999999[]"),
    *(
        '451-["x",{"_placeholder":true,"num":0}]',
        "459999999999-[]",
        "461-1[]",
        "40/nowhere,",
        "40/attendance",
        "41/attendance,",
    ),
    *('42["\\ud800"]', '42["\\u0000"]', "42" + "[" * 5000, '42["x",' + '{"a":' * 2000, "42" + "9" * 500 + '["x"]', "42[1e999]"),
    *('42["connect",{}]', '42["disconnect"]', '42["x",NaN]', "42[-0]", '42["x"', '42["' + "x" * 5000 + '"]', "40[]", "40null"),
)
IDS = some.sampled_from(["", "0" * 24, "nobody", "a b", "é", "\0", "x" * 65, "../..", "{}", "%s", "'; --"])
JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(some.characters(), max_size=20) | IDS,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = (
    *("session_id", "sessionId", "student_id", "studentId", "course_id", "command_id", "status", "remarks", "reason"),
    *("expected_seq", "since_seq", "attendanceUpdates", "token", "code", "location", "device_id"),
)
PAYLOADS = some.dictionaries(some.sampled_from(KEYS), JSON | IDS, max_size=6) | JSON
CORPUS: tuple[Any, ...] = (
    None,
    [],
    {},
    "",
    1e308,
    2**200,
    -1,
    [[[]]],
    {"session_id": {"session_id": {}}},
    {"session_id": "x", "sessionId": "y"},
    {"session_id": "0" * 24, "attendanceUpdates": [{"student_id": "x", "status": "late"}] * 3},
    {"session_id": "0" * 24, "attendanceUpdates": [{"student_id": "\ud800", "status": "late"}]},
    {"session_id": "0" * 24, "student_id": "x", "remarks": "\0"},
    {"session_id": "0" * 24, "since_seq": 2**63},
    {"session_id": "0" * 24, "since_seq": 2**53 + 1},
    {"session_id": "0" * 24, "expected_seq": 1e20, "student_id": "x", "status": "late"},
    {"token": "a.b.c"},
    {"token": "eyJhbGciOiJub25lIn0.e30."},
    {"": {"": {"": []}}},
)


@pytest.fixture
def gateway(cluster: Rig) -> Iterator[tuple[str, Process]]:
    """The gateway that is fuzzed: no fault in its log, no `internal` in an answer, no connection left, no growth."""
    process = cluster.processes["gateway-2"]
    asyncio.run(no_connections(process))
    logged, memory = process.log.stat().st_size, rss_kib(process)
    yield cluster.gateways[1], process
    asyncio.run(no_connections(process))
    assert not (found := OUR_FAULT.search(process.log.read_bytes()[logged:].decode())), found
    growth = rss_kib(process) - memory
    print(f"{EXAMPLES} examples: {growth} KiB")
    assert growth < GROWTH_KIB


async def well(client: Websocket, number: int = 777) -> None:
    """Another client is answered as ever."""
    assert (await client.ask("nobodyKnows", {}, number=number))["error"]["code"] == "invalid"


def packets() -> some.SearchStrategy[list[str]]:
    """Sequences of packets: known ones, damaged ones, and rubbish."""
    head = some.sampled_from(["4", "40", "41", "42", "421", "43", "44", "45", "42/attendance,", "42/attendance,1", "40/", "b"])
    wrapped = some.builds(lambda head, body: head + json.dumps(body), head, JSON)
    text = some.text(some.characters(exclude_categories=["Cs"]), max_size=40)
    damaged = some.builds(lambda packet, at, letter: packet[:at] + letter + packet[at:], wrapped, some.integers(0, 20), text)
    return some.lists(some.sampled_from(PACKETS) | wrapped | damaged | text, min_size=1, max_size=6)


@pytest.mark.parametrize("joined", [True, False])
def test_any_packets_by_websocket_are_answered_or_end_that_connection(gateway: tuple[str, Process], joined: bool) -> None:
    url, _ = gateway

    async def attempt(said: list[str]) -> None:
        async with a_websocket(url) as client, a_websocket(url) as other:
            await other.join(an_admin())
            if joined:
                await client.join(token("somebody", "student"))
            await client.send(*said, "1")
            heard = await client.ended()
            assert not any('"internal"' in packet for packet in heard), (said, heard)
            await well(other)

    @fuzzing
    @given(packets())
    @each_example([[packet] for packet in PACKETS])
    def fuzz(said: list[str]) -> None:
        asyncio.run(attempt(said))

    fuzz()


def test_any_frames_of_bytes_end_that_connection(gateway: tuple[str, Process]) -> None:
    url, _ = gateway

    @fuzzing
    @given(some.binary(max_size=200))
    @each_example([b"", b"4", b"\xff" * 100, b'42["x"]'])
    def fuzz(said: bytes) -> None:
        async def attempt() -> None:
            async with a_websocket(url) as client:
                await client.join(token("somebody", "student"))
                await client.send(said)
                assert await client.ended() == []

        asyncio.run(attempt())

    fuzz()


def test_any_body_and_query_of_polling_is_answered_well_or_refused(gateway: tuple[str, Process]) -> None:
    url, _ = gateway
    words = some.sampled_from(["4", "polling", "websocket", "", "x", "-1", "4&EIO=3", "%00", "\x1e", "٤"])
    queries = some.dictionaries(some.sampled_from(["EIO", "transport", "sid", "t", "j", "b64"]), words, max_size=4)

    async def attempt(body: bytes, query: dict[str, str]) -> None:
        async with polling(url) as client, a_websocket(url) as other:
            await other.join(an_admin())
            await client.join(token("somebody", "student"))
            assert await client.post(data=body) in (200, 400)
            for method in ("GET", "POST", "PUT"):
                status, _ = await client.request(method, "&".join(f"{key}={value}" for key, value in query.items()))
                assert status in (200, 400, 405), (method, query)
            await client.post("1")
            await well(other)

    @fuzzing
    @given(some.binary(max_size=100) | packets().map(lambda said: "\x1e".join(said).encode()), queries)
    @example(b"", {})
    @example(b"\xff", {"EIO": "4", "transport": "polling", "sid": "x"})
    @example(b"4\x1e4\x1e4", {"transport": "websocket", "EIO": "4"})
    @example(b"\x1e" * 1000, {"j": "0"})
    def fuzz(body: bytes, query: dict[str, str]) -> None:
        asyncio.run(attempt(body, query))

    fuzz()


def test_any_payload_of_any_command_is_refused_or_done(gateway: tuple[str, Process]) -> None:
    """By a student who is on no roll, and by an admin."""
    url, _ = gateway
    codes: set[str] = set()

    async def attempt(payload: object) -> None:
        """Send it as the payload of every command; answers come in any order."""
        async with a_websocket(url) as student, a_websocket(url) as admin:
            # Somebody else each time: one user who asks all this within seconds is told `rate_limited`.
            for client, bearer in ((student, token(unique("s"), "student")), (admin, token(unique("a"), "admin"))):
                await client.join(bearer)
                await client.send(*(f"42{number}{json.dumps([event, payload])}" for number, event in enumerate(WRONG, 1)))
                waiting = set(range(1, len(WRONG) + 1))
                while waiting:
                    number, _, answer = (await client.until("43"))[2:].partition("[")
                    waiting.remove(int(number))
                    read = json.loads(f"[{answer}")[0]
                    codes.add(read["error"]["code"] if not read["ok"] else "ok")
            await well(admin)

    @fuzzing
    @given(PAYLOADS.filter(is_sendable))
    @each_example(CORPUS)
    def fuzz(payload: object) -> None:
        asyncio.run(attempt(payload))

    fuzz()
    assert "internal" not in codes, codes
    assert "invalid" in codes


def is_sendable(payload: object) -> bool:
    """JSON has no NaN and no infinity, and a payload beyond 4 KiB is another test's."""
    try:
        return len(json.dumps(payload, allow_nan=False)) < 4096
    except ValueError:
        return False


def each_example(examples: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try each of these first."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        for each in examples:
            test = example(each)(test)
        return test

    return decorate
