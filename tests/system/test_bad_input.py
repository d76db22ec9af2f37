"""What callers get wrong over Socket.IO: refused with the contract's code, on both deployments, and without a trace."""

import asyncio
import json
from dataclasses import dataclass

import aiohttp
import pytest
import socketio

from tests.system.fixed_scene import BAD_TOKENS, END, JOIN, MEGABYTE, START, FixedScene
from tests.system.talk import SECONDS, Caller, Payload, calling

NAMESPACES = ("/", "/attendance")
READ = "getAttendanceSessionData"
COMMANDS = (START, JOIN, READ, END)


# Handshakes


HANDSHAKES: dict[str, tuple[object, str]] = {
    "no auth": (None, "unauthenticated"),
    "empty auth": ({}, "unauthenticated"),
    "auth that is a string": ("token", "unauthenticated"),
    "auth that is a list": (["token"], "unauthenticated"),
    "no token": ({"token": None}, "unauthenticated"),
    "an empty token": ({"token": ""}, "unauthenticated"),
    "a token that is a number": ({"token": 5}, "unauthenticated"),
    **{name: ({"token": bad}, code) for name, (bad, code) in BAD_TOKENS.items()},
}


@pytest.mark.parametrize("case", HANDSHAKES)
async def test_a_handshake_without_a_good_token_is_refused(fixed_scene: FixedScene, case: str) -> None:
    """On either namespace."""
    auth, code = HANDSHAKES[case]

    async def refusal(namespace: str) -> Payload:
        client = socketio.AsyncClient(reconnection=False)
        refused: asyncio.Future[Payload] = asyncio.get_running_loop().create_future()
        client.on("connect_error", refused.set_result, namespace=namespace)
        try:
            with pytest.raises(socketio.exceptions.ConnectionError):
                await client.connect(
                    fixed_scene.here, auth=auth, namespaces=[namespace], transports=["websocket"], wait_timeout=SECONDS
                )
            return await asyncio.wait_for(refused, SECONDS)
        finally:
            await client.disconnect()

    for error in await asyncio.gather(*map(refusal, NAMESPACES)):
        assert error == {"message": error["message"], "data": {"code": code}}
        assert error["message"]


# Events and payloads


async def refused(caller: Caller, event: str, *payload: object, code: str, session_id: str | None = None) -> Payload:
    """Send a command; see that it is refused in the acknowledgement and in an event alike; return the error."""
    answer = await caller.ask(event, *payload)
    heard = await caller.heard("attendanceError")

    error: Payload = answer["error"]
    assert answer == {"ok": False, "error": error, "server_time": answer["server_time"]}
    assert error["code"] == code, error
    assert error["message"]
    assert error["retryable"] is False
    assert set(error) <= {"code", "message", "retryable", "details"}
    assert ("details" in error) == (code == "invalid")
    assert heard == {**error, "event": event[:64], **({"session_id": session_id} if session_id else {})}
    return error


@pytest.mark.parametrize(
    "event",
    [
        "nobodyKnowsThis",
        "",
        " ",
        "connect",
        "disconnect",
        "*",
        "message",
        "__class__",
        "x" * 500,
        "größe\u2028\0",
        JOIN.lower(),
    ],
)
@pytest.mark.parametrize("namespace", NAMESPACES)
async def test_an_event_nobody_knows_is_invalid(fixed_scene: FixedScene, namespace: str, event: str) -> None:
    """Also one that is named as the library's own; the socket is none the worse for it."""
    async with calling(fixed_scene.here, fixed_scene.tokens["ann"], namespace=namespace) as ann:
        await refused(ann, event, fixed_scene.about("active"), code="invalid")
        await refused(ann, event, code="invalid")
        assert (await ann.ask(JOIN, fixed_scene.about("active")))["ok"]


PAYLOADS: dict[str, tuple[object, ...]] = {
    "a string": ("0" * 24,),
    "a list": (["0" * 24],),
    "an empty list": ([],),
    "a number": (5,),
    "true": (True,),
    "null": ((None,),),
    "none": (),
    "two": ({"session_id": "0" * 24}, {"session_id": "0" * 24}),
    "an empty object": ({},),
    "another key": ({"session": "0" * 24},),
    "a session_id that is a number": ({"session_id": 5},),
    "a session_id that is null": ({"session_id": None},),
    "a session_id that is a list": ({"session_id": ["0" * 24]},),
    "a session_id that is an object": ({"session_id": {"$ne": ""}},),
    "an empty session_id": ({"session_id": ""},),
    "an empty sessionId": ({"sessionId": ""},),
    "a session_id of 65": ({"session_id": "0" * 65},),
    "a session_id with a blank": ({"session_id": "0 0"},),
    "a session_id with a newline at the end": ({"session_id": "0\n"},),
    "a session_id with a NUL": ({"session_id": "0\0"},),
    "a session_id in other letters": ({"session_id": "é"},),
    "an empty command_id": ({"session_id": "0" * 24, "command_id": ""},),
    "a command_id of 65": ({"session_id": "0" * 24, "command_id": "0" * 65},),
    "a command_id that is a number": ({"session_id": "0" * 24, "command_id": 1},),
    "more than 4 KiB": ({"session_id": "0" * 24, "padding": "x" * 4096},),
    "more than 4 KiB of two bytes each": ({"session_id": "0" * 24, "padding": "é" * 2048},),
    "200 KiB": ({"session_id": "0" * 24, "padding": "x" * 200 * 1024},),
}


@pytest.mark.parametrize("case", PAYLOADS)
async def test_a_payload_that_is_no_command_is_invalid(fixed_scene: FixedScene, case: str) -> None:
    payload = PAYLOADS[case]
    async with calling(fixed_scene.here, fixed_scene.tokens["admin"]) as admin:
        for event in COMMANDS:
            error = await refused(admin, event, *payload, code="invalid")
            (detail,) = error["details"]
            assert set(detail) == {"field", "message"}
            if "_id" in case:
                assert detail["field"] in ("session_id", "command_id")
        assert (await admin.ask(READ, fixed_scene.about("active")))["ok"]


async def test_a_payload_of_just_4_kib_is_well(fixed_scene: FixedScene) -> None:
    payload = {**fixed_scene.about("active"), "padding": ""}
    payload["padding"] = "x" * (4096 - len(json.dumps(payload, separators=(",", ":"))))
    async with calling(fixed_scene.here, fixed_scene.tokens["ann"]) as ann:
        assert (await ann.ask(JOIN, payload))["ok"]


async def test_unknown_keys_are_ignored(fixed_scene: FixedScene) -> None:
    payload = {**fixed_scene.about("active"), "student_id": "somebody else", "role": "admin", "__proto__": {}, "": None}
    async with calling(fixed_scene.here, fixed_scene.tokens["ann"]) as ann:
        assert (await ann.ask(JOIN, payload))["ok"]


# Frames


async def test_a_frame_of_a_megabyte_closes_that_connection_and_no_other(fixed_scene: FixedScene) -> None:
    async with (
        calling(fixed_scene.here, fixed_scene.tokens["bob"]) as bob,
        calling(fixed_scene.here, fixed_scene.tokens["ann"]) as ann,
    ):
        await bob.client.emit(JOIN, {**fixed_scene.about("active"), "padding": "x" * MEGABYTE}, namespace=bob.namespace)
        await asyncio.wait_for(bob.client.wait(), SECONDS)
        assert (await ann.ask(JOIN, fixed_scene.about("active")))["ok"]


async def test_a_post_of_a_megabyte_is_refused(fixed_scene: FixedScene) -> None:
    """At once, though that client does not poll, and ends its session."""
    url = f"{fixed_scene.here}/socket.io/?EIO=4&transport=polling"
    async with calling(fixed_scene.here, fixed_scene.tokens["ann"]) as ann, aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            sid = json.loads((await response.text())[1:])["sid"]
        async with asyncio.timeout(SECONDS), session.post(f"{url}&sid={sid}", data="4" + "x" * MEGABYTE) as response:
            assert response.status == 400
        async with session.get(f"{url}&sid={sid}") as response:
            assert response.status == 400
        assert (await ann.ask(JOIN, fixed_scene.about("active")))["ok"]


FRAMES = {
    "an unknown packet": "9",
    "a message without a packet": "4",
    "an unknown kind": "49",
    "an event without a list": "42",
    "an event that is no JSON": "42[",
    "an event that is an object": "42{}",
    "an event without a name": "42[]",
    "an event named by a number": "42[1]",
    "an event named null": "42[null,{}]",
    "an event named by a list": '42[["connect"]]',
    "an event on a namespace nobody is on": '42/attendance,["joinAttendanceSession",{}]',
    "an acknowledgement nobody waits for": "4312345[]",
    "an endless number": "42" + "1" * 5000 + '["x"]',
    "a tower": "42" + "[" * 100_000,
    "a tower that is complete": '42["joinAttendanceSession",' + "[" * 50_000 + "]" * 50_000 + "]",
    "a binary event": '451-["joinAttendanceSession",{"_placeholder":true,"num":0}]',
    "half a letter": '42["\\ud800"]',
}


@pytest.mark.parametrize("case", FRAMES)
async def test_a_frame_that_is_no_packet_hurts_nobody(fixed_scene: FixedScene, case: str) -> None:
    """Answered, or ignored, or the end of that connection; the next socket neither hears nor feels it."""
    url = f"{fixed_scene.here}/socket.io/?EIO=4&transport=websocket"
    async with calling(fixed_scene.here, fixed_scene.tokens["ann"]) as ann, aiohttp.ClientSession() as session:
        async with asyncio.timeout(SECONDS), session.ws_connect(url) as socket:
            assert (await socket.receive_str())[0] == "0"
            await socket.send_str("40" + json.dumps({"token": fixed_scene.tokens["bob"]}))
            assert (await socket.receive_str())[:2] == "40"
            await socket.send_str(FRAMES[case])
            # An event after it is answered, unless the connection is over.
            await socket.send_str('427["nobodyKnowsThis"]')
            async for message in socket:
                if message.data.startswith("437"):
                    break
        assert (await ann.ask(JOIN, fixed_scene.about("active")))["ok"]


# Who may, and when


@dataclass(frozen=True)
class Refusal:
    """A command that is well formed, and refused."""

    who: str
    event: str
    state: str
    code: str

    def __str__(self) -> str:
        return f"{self.who}-{self.event}-{self.state}-{self.code}"


REFUSALS = (
    *(Refusal(who, event, "unknown", "session_not_found") for who in ("admin", "ann") for event in COMMANDS),
    Refusal("other student", JOIN, "active", "not_enrolled"),
    Refusal("teacher", JOIN, "active", "not_enrolled"),
    *(
        Refusal(who, event, state, "forbidden")
        for who in ("ann", "other student", "other teacher")
        for event, state in ((START, "scheduled"), (START, "completed"), (READ, "active"), (END, "active"), (END, "scheduled"))
    ),
    *(Refusal("service", event, state, "forbidden") for event, state in ((START, "scheduled"), (END, "active"))),
    Refusal("ann", JOIN, "scheduled", "session_not_active"),
    Refusal("bob", JOIN, "completed", "session_completed"),
    Refusal("teacher", START, "completed", "session_completed"),
    Refusal("teacher", END, "scheduled", "session_not_active"),
    Refusal("teacher", READ, "scheduled", "session_not_active"),
)


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
async def test_a_command_that_may_not_be_is_refused(fixed_scene: FixedScene, refusal: Refusal) -> None:
    session_id = fixed_scene.sessions.get(refusal.state, "0" * 24)
    async with calling(fixed_scene.here, fixed_scene.tokens[refusal.who]) as caller:
        await refused(caller, refusal.event, {"session_id": session_id}, code=refusal.code, session_id=session_id)


async def test_a_service_may_read_a_roll(fixed_scene: FixedScene) -> None:
    async with calling(fixed_scene.here, fixed_scene.tokens["service"]) as service:
        assert len((await service.ask(READ, fixed_scene.about("active")))["attendanceRecords"]) == 2


@pytest.mark.parametrize("state", ["active", "completed"])
async def test_joining_twice_answers_as_the_first_time(fixed_scene: FixedScene, state: str) -> None:
    """Wherever, and also after the end."""
    async with (
        calling(fixed_scene.here, fixed_scene.tokens["ann"]) as one,
        calling(fixed_scene.there, fixed_scene.tokens["ann"], namespace="/") as two,
    ):
        answers = [await caller.ask(JOIN, fixed_scene.about(state)) for caller in (one, two, one)]
    for answer in answers:
        del answer["server_time"]
    roll = (await fixed_scene.seen())[state]
    (record,) = (record for record in roll["attendanceRecords"] if record["student_id"] == fixed_scene.lecture.students[0])
    assert answers[0]["ok"]
    assert answers == [answers[0]] * 3
    assert answers[0]["joined_at"] == record["joined_at"]


async def test_commands_of_one_socket_for_one_session_are_answered_in_the_order_sent(fixed_scene: FixedScene) -> None:
    answers: list[tuple[int, bool]] = []
    everything = asyncio.Event()
    commands = 20
    async with calling(fixed_scene.here, fixed_scene.tokens["ann"]) as ann:
        for number in range(commands):

            def answered(answer: Payload, number: int = number) -> None:
                answers.append((number, answer["ok"]))
                if len(answers) == commands:
                    everything.set()

            # A join comes back from another service than the refusal of a read or a start.
            event = (JOIN, READ, JOIN, START)[number % 4]
            await ann.client.emit(event, fixed_scene.about("active"), namespace=ann.namespace, callback=answered)
        await asyncio.wait_for(everything.wait(), SECONDS)

    assert answers == [(number, number % 2 == 0) for number in range(commands)]
