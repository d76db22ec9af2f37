"""Socket.IO 5 as the gateway speaks it: namespaces, events and acknowledgements, and what ends a connection."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.engine.links import COMMANDS, REFUSALS
from tests.system.gateways import gateways_alone
from tests.system.rig import Rig
from tests.system.rig import token as minted
from tests.system.talk import a_lecture, calling
from tests.wire import Websocket, a_websocket


@pytest.fixture
def url(cluster: Rig) -> str:
    """A gateway as it is in use."""
    return cluster.gateways[0]


_numbers = itertools.count(1)


def token(*, seconds: float = 3600) -> str:
    """Mint the token of a student of its own: what one asks is counted for all their sockets."""
    return minted(f"ann-{next(_numbers)}", "student", seconds=seconds)


@pytest.fixture
async def client(url: str) -> AsyncIterator[Websocket]:
    """A connection that has joined nothing yet."""
    async with a_websocket(url) as client:
        yield client


async def test_a_connect_is_answered_with_an_id_of_its_own(client: Websocket) -> None:
    root, attendance = await client.join(token()), await client.join(token(), "/attendance")
    assert root.startswith('40{"sid":"')
    assert attendance.startswith('40/attendance,{"sid":"')
    sids = {client.opening["sid"], json.loads(root[2:])["sid"], json.loads(attendance.removeprefix("40/attendance,"))["sid"]}
    assert len(sids) == 3


@pytest.mark.parametrize("auth", ["", "{}", '{"token":null}', '{"token":"rubbish"}', "[]", "true"])
@pytest.mark.parametrize("prefix", ["", "/attendance,"])
async def test_a_connect_without_a_good_token_is_refused(client: Websocket, auth: str, prefix: str) -> None:
    await client.send(f"40{prefix}{auth}")
    answer = await client.until("44")
    assert answer.startswith(f"44{prefix}")
    error = json.loads(answer.removeprefix(f"44{prefix}"))
    assert error == {"message": error["message"], "data": {"code": "unauthenticated"}}


@pytest.mark.parametrize("namespace", ["/admin", "/attendance/", "/Attendance", "/a b", "//"])
async def test_a_namespace_nobody_serves_is_said_to_be_invalid(client: Websocket, namespace: str) -> None:
    """And hurts no other namespace of that connection."""
    await client.join(token())
    await client.send(f"40{namespace},{json.dumps({'token': token()})}")
    assert await client.until("44") == f'44{namespace},{{"message":"Invalid namespace","data":{{"code":"invalid"}}}}'
    assert (await client.ask("nobodyKnows", {}))["error"]["code"] == "invalid"


async def test_the_query_of_a_namespace_is_not_part_of_its_name(client: Websocket) -> None:
    await client.send(f"40/attendance?token=x,{json.dumps({'token': token()})}")
    assert (await client.until("40")).startswith("40/attendance,")


async def test_a_second_connect_to_the_same_namespace_changes_nothing(client: Websocket) -> None:
    await client.join(token())
    assert (await client.join(token())).startswith("44")
    assert (await client.ask("nobodyKnows", {}))["error"]["code"] == "invalid"


async def test_an_event_with_a_number_is_acknowledged_with_it(client: Websocket) -> None:
    await client.join(token(), "/attendance")
    await client.send('42/attendance,["nobodyKnows",{}]', '42/attendance,7["nobodyKnows",{}]')
    heard = [await client.next() for _ in range(3)]
    assert [packet.partition("[")[0] if packet else None for packet in heard] == ["42/attendance,"] * 2 + ["43/attendance,7"]


async def test_to_leave_one_namespace_keeps_the_other(client: Websocket) -> None:
    await client.join(token())
    await client.join(token(), "/attendance")
    await client.send("41/attendance,", '42/attendance,8["nobodyKnows",{}]')
    assert (await client.ask("nobodyKnows", {}))["error"]["code"] == "invalid"
    assert (await client.join(token(), "/attendance")).startswith("40/attendance,")


async def test_who_leaves_the_last_namespace_may_join_another_on_the_same_connection(client: Websocket) -> None:
    await client.join(token())
    await client.send("41")
    assert (await client.join(token(), "/attendance")).startswith("40/attendance,")


async def test_who_leaves_the_last_namespace_and_stays_is_closed(redis_url: str) -> None:
    async with gateways_alone(redis_url, count=1, times={"connect_seconds": 1.5}) as [url], a_websocket(url) as client:
        await client.join(token())
        await client.send("41")
        assert await client.ended() == ["1"]


async def test_who_is_sent_away_loses_the_connection_too(url: str) -> None:
    async with a_websocket(url) as client:
        # The leeway is 30 s.
        await client.join(token(seconds=-29))
        packets = await client.ended()
    assert [packet[:2] for packet in packets] == ["42", "41", "1"]
    assert "token_expired" in packets[0]


@pytest.mark.parametrize(
    "packet",
    [
        '42["nobodyKnows",{}]',
        '421["nobodyKnows",{}]',
        '42/attendance,["nobodyKnows",{}]',
        '42/admin,["nobodyKnows",{}]',
        "41/attendance,5",
        "431[]",
        "44{}",
        "45",
    ],
)
async def test_a_packet_before_its_connect_ends_the_connection(client: Websocket, packet: str) -> None:
    await client.send(packet)
    assert await client.ended() == []


@pytest.mark.parametrize(
    "packet",
    [
        "4",
        "4abc",
        "47",
        "49",
        "4-1",
        "4٢[]",
        "42",
        "42[",
        "42{}",
        "42[]",
        "42[1]",
        "42[null]",
        '42"x"',
        '42["x"',
        '42["x"]]',
        '42["x",NaN]',
        '42/attendance["x"]',
        "42/" + "a" * 5000 + ',["x"]',
        "42" + "1" * 400 + '["x"]',
        "42" + "[" * 100_000,
        "44{}",
        "40{",
        '405{"token":"x"}',
        '451-["x",{"_placeholder":true,"num":0}]',
        '4599999999-["x",{"_placeholder":true,"num":0}]',
        "461-1[]",
    ],
)
async def test_a_malformed_packet_ends_the_connection(client: Websocket, packet: str) -> None:
    """A binary one too, before anybody waits for what it announces."""
    await client.join(token())
    await client.send(packet)
    assert await client.ended() == []


async def test_an_acknowledgement_nobody_waits_for_is_dropped(client: Websocket) -> None:
    await client.join(token())
    await client.send("435[]", "435[{}]")
    assert (await client.ask("nobodyKnows", {}))["error"]["code"] == "invalid"


@pytest.mark.parametrize("event", ["connect", "disconnect", "connect_error", "message", "*", " connect", "ping"])
async def test_no_event_passes_for_the_librarys_own(client: Websocket, event: str) -> None:
    await client.join(token())
    assert (await client.ask(event, {}))["error"]["code"] == "invalid"
    assert (await client.ask("nobodyKnows", {}, number=2))["error"]["code"] == "invalid"


async def test_half_an_emoji_is_invalid_and_ends_nothing(client: Websocket) -> None:
    await client.join(token())
    await client.send('424["joinAttendanceSession",{"session_id":"\\ud83d"}]')
    answer = json.loads((await client.until("434")).removeprefix("434"))[0]
    assert answer["error"]["code"] == "invalid"
    assert "surrogate" in answer["error"]["message"]
    await client.send('425["\\ud83d"]')
    assert (await client.until("435"))[:4] == "435["


# Rates


async def test_commands_beyond_the_bucket_are_refused_and_say_when_to_come_again(client: Websocket) -> None:
    await client.join(token())
    await client.send(*(f'42{number}["nobodyKnows",{{}}]' for number in range(COMMANDS + 60)))
    answers: dict[int, Any] = {}
    events = 0
    while len(answers) < COMMANDS + 60:
        packet = await client.next()
        assert packet is not None
        if packet.startswith("43"):
            number, _, body = packet[2:].partition("[")
            answers[int(number)] = json.loads("[" + body)[0]["error"]
        elif packet.startswith("42"):
            event, error = json.loads(packet[2:])
            events += error["code"] == "rate_limited"
            assert (event, error["event"]) == ("attendanceError", "nobodyKnows")
    limited = [error for error in answers.values() if error["code"] == "rate_limited"]
    # The connect has taken one out of the bucket too.
    assert 0 < len(limited) == events <= 60 + 1
    for error in limited:
        assert error["retryable"] is True
        assert 1 <= error["retry_after_ms"] <= 20 + 1
    assert {error["code"] for error in answers.values()} == {"invalid", "rate_limited"}
    # The bucket fills again.
    async with asyncio.timeout(10):
        while (await client.ask("nobodyKnows", {}, number=1000))["error"]["code"] == "rate_limited":
            pass


async def test_who_goes_on_and_on_is_closed(client: Websocket) -> None:
    await client.join(token())
    await client.send(*(['42["nobodyKnows",{}]'] * (COMMANDS + REFUSALS + 2000)))
    assert len(await client.ended(seconds=30)) <= COMMANDS + REFUSALS + 500


async def test_answers_that_cross_a_goodbye_go_nowhere(client: Websocket) -> None:
    """Neither those of commands that are under way nor those of commands that have not begun: these got empty ones."""
    await client.join(token())
    commands = [f'42{number}["joinAttendanceSession",{{"session_id":"x{number}"}}]' for number in range(50)]
    await client.send(*commands, "41", "40" + json.dumps({"token": token()}), '4299["nobodyKnows",{}]')
    heard: list[str] = []
    while not (heard and heard[-1].startswith("4399")):
        packet = await client.next()
        assert packet is not None, heard
        heard.append(packet)
    again = next(place for place, packet in enumerate(heard) if packet.startswith("40"))
    assert not [packet for packet in heard if packet.startswith("43") and packet.endswith("[]")]
    assert [packet[:4] for packet in heard[again + 1 :]] == ['42["', "4399"]


async def test_a_teacher_who_polls_hears_of_all_who_join_at_once(cluster: Rig) -> None:
    """python-socketio's client ends a connection that answers one poll with more than 16 packets."""
    here, there = cluster.gateways
    lecture = await a_lecture(here, students=40)
    async with AsyncExitStack() as stack:
        bearer = minted(lecture.teacher, "teacher")
        teacher = await stack.enter_async_context(calling(here, bearer, transports=["polling"]))
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        students = [await stack.enter_async_context(calling(there, minted(student, "student"))) for student in lecture.students]

        answers = await asyncio.gather(*(student.ask("joinAttendanceSession", lecture.about) for student in students))

        assert all(answer["ok"] for answer in answers)
        heard = [(await teacher.heard("studentJoinedAttendance"))["student_id"] for _ in lecture.students]
        assert sorted(heard) == sorted(lecture.students)
