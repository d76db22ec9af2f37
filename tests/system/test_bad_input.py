"""What callers get wrong: refused with the contract's code, on both deployments, and without a trace in rolls or logs."""

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import aiohttp
import jwt
import pytest
import socketio

from shared.messages import Role
from tests.system.rig import OUR_FAULT, SECRET, Rig, token, unique
from tests.system.talk import SECONDS, Caller, Lecture, Payload, a_lecture, a_session, an_admin, bearer, calling, http

NAMESPACES = ("/", "/attendance")
START, JOIN = "startAttendanceSession", "joinAttendanceSession"
READ, END = "getAttendanceSessionData", "endAttendanceSession"
COMMANDS = (START, JOIN, READ, END)
MEGABYTE = 1024 * 1024
A_DAY_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Scene:
    """One course with a session in each state, which no test here may change; Ann has joined, Bob has not."""

    rig: Rig
    lecture: Lecture
    sessions: dict[str, str]
    tokens: dict[str, str]

    @property
    def here(self) -> str:
        """A gateway."""
        return self.rig.gateways[0]

    @property
    def there(self) -> str:
        """The other, where there are two."""
        return self.rig.gateways[1]

    def about(self, state: str) -> Payload:
        """The payload of a command about the session in a state."""
        return {"session_id": self.sessions[state]}

    async def seen(self) -> dict[str, Payload]:
        """What Rollcall knows of the course, of its sessions and of their rolls."""
        course = f"/courses/{self.lecture.course_id}"
        pages = {"course": course, "roster": f"{course}/roster", "sessions": f"/sessions?course_id={self.lecture.course_id}"}
        for state in ("active", "completed"):
            pages[state] = f"/sessions/{self.sessions[state]}/attendance"
        admin = an_admin()
        answers = await asyncio.gather(*(http(self.there, "GET", page, admin) for page in pages.values()))
        assert {status for status, _ in answers} == {200}
        for _, body in answers:
            body.pop("server_time", None)
        return dict(zip(pages, (body for _, body in answers), strict=True))


async def a_scene(rig: Rig) -> Scene:
    """Set it: one session is scheduled, one active, one completed."""
    lecture, elsewhere = await a_lecture(rig.gateways[0], students=2), await a_lecture(rig.gateways[0], students=1)
    ann, bob = lecture.students
    sessions = {"scheduled": lecture.session_id}
    for state in ("active", "completed"):
        sessions[state] = await a_session(rig.gateways[0], lecture.course_id)
    tokens = {
        "admin": an_admin(),
        "service": token("timetable", "service"),
        "teacher": bearer(lecture.teacher, "teacher"),
        "other teacher": bearer(elsewhere.teacher, "teacher"),
        "ann": bearer(ann, "student"),
        "bob": bearer(bob, "student"),
        "other student": bearer(elsewhere.students[0], "student"),
    }
    async with calling(rig.gateways[0], tokens["admin"]) as admin, calling(rig.gateways[1], tokens["ann"]) as student:
        for state in ("active", "completed"):
            assert (await admin.ask(START, {"session_id": sessions[state]}))["ok"]
            assert (await student.ask(JOIN, {"session_id": sessions[state]}))["ok"]
        assert (await admin.ask(END, {"session_id": sessions["completed"]}))["ok"]
    return Scene(rig, lecture, sessions, tokens)


@pytest.fixture(scope="module")
def scenes() -> dict[int, tuple[Scene, dict[str, Payload]]]:
    """The scenes set so far, one for each rig, and how each looked last."""
    return {}


@pytest.fixture
async def scene(rig: Rig, scenes: dict[int, tuple[Scene, dict[str, Payload]]]) -> AsyncIterator[Scene]:
    """The scene on this rig. After the test it must be as before, and nobody may have logged a fault of ours."""
    if id(rig) not in scenes:
        new = await a_scene(rig)
        scenes[id(rig)] = new, await new.seen()
    scene, before = scenes[id(rig)]
    logged = {name: process.log.stat().st_size for name, process in rig.processes.items()}

    yield scene

    after = await scene.seen()
    scenes[id(rig)] = scene, after
    assert after == before
    for name, process in rig.processes.items():
        lines = process.log.read_bytes()[logged.get(name, 0) :].decode()
        assert not OUR_FAULT.search(lines), f"{name}: {lines}"


# Handshakes


def signed(*, secret: str = SECRET, algorithm: str | None = "HS256", seconds: float = A_DAY_SECONDS, **claims: object) -> str:
    """Make a token of these claims; a claim of None is left out. It is made on import and must outlive the run."""
    full = {"sub": "ann", "role": "student", "exp": datetime.now(UTC) + timedelta(seconds=seconds), **claims}
    present = {name: value for name, value in full.items() if value is not None}
    return jwt.encode(present, secret if algorithm != "none" else "", algorithm=algorithm)


BAD_TOKENS: dict[str, tuple[str, str]] = {
    "no JWT": ("rubbish", "unauthenticated"),
    "three dots": ("a.b.c", "unauthenticated"),
    "not ASCII": ("schlüssel.ö.ß", "unauthenticated"),
    "expired": (signed(seconds=-31), "token_expired"),
    "expired and forged": (signed(seconds=-31, secret="x" * 40), "unauthenticated"),
    "another secret": (signed(secret="x" * 40), "unauthenticated"),
    "another algorithm": (signed(algorithm="HS512", secret=SECRET + SECRET), "unauthenticated"),
    "no algorithm": (signed(algorithm="none"), "unauthenticated"),
    "not yet": (signed(nbf=datetime.now(UTC) + timedelta(hours=12)), "unauthenticated"),
    "no exp": (signed(exp=None), "unauthenticated"),
    "no sub and no uid": (signed(sub=None), "unauthenticated"),
    "a sub that is no id": (signed(sub="ann and bob"), "unauthenticated"),
    "an empty uid": (signed(sub=None, uid=""), "unauthenticated"),
    "no role": (signed(role=None), "unauthenticated"),
    "an unknown role": (signed(role="headmaster"), "unauthenticated"),
    "a role that is no string": (signed(role=["admin"]), "unauthenticated"),
    "a header nested without end": (b64encode(b"[" * 6000).decode() + ".e30.x", "unauthenticated"),
}
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
async def test_a_handshake_without_a_good_token_is_refused(scene: Scene, case: str) -> None:
    """On either namespace."""
    auth, code = HANDSHAKES[case]

    async def refusal(namespace: str) -> Payload:
        client = socketio.AsyncClient(reconnection=False)
        refused: asyncio.Future[Payload] = asyncio.get_running_loop().create_future()
        client.on("connect_error", refused.set_result, namespace=namespace)
        try:
            with pytest.raises(socketio.exceptions.ConnectionError):
                await client.connect(
                    scene.here, auth=auth, namespaces=[namespace], transports=["websocket"], wait_timeout=SECONDS
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
async def test_an_event_nobody_knows_is_invalid(scene: Scene, namespace: str, event: str) -> None:
    """Also one that is named as the library's own; the socket is none the worse for it."""
    async with calling(scene.here, scene.tokens["ann"], namespace=namespace) as ann:
        await refused(ann, event, scene.about("active"), code="invalid")
        await refused(ann, event, code="invalid")
        assert (await ann.ask(JOIN, scene.about("active")))["ok"]


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
async def test_a_payload_that_is_no_command_is_invalid(scene: Scene, case: str) -> None:
    payload = PAYLOADS[case]
    async with calling(scene.here, scene.tokens["admin"]) as admin:
        for event in COMMANDS:
            error = await refused(admin, event, *payload, code="invalid")
            (detail,) = error["details"]
            assert set(detail) == {"field", "message"}
            if "_id" in case:
                assert detail["field"] in ("session_id", "command_id")
        assert (await admin.ask(READ, scene.about("active")))["ok"]


async def test_a_payload_of_just_4_kib_is_well(scene: Scene) -> None:
    payload = {**scene.about("active"), "padding": ""}
    payload["padding"] = "x" * (4096 - len(json.dumps(payload, separators=(",", ":"))))
    async with calling(scene.here, scene.tokens["ann"]) as ann:
        assert (await ann.ask(JOIN, payload))["ok"]


async def test_unknown_keys_are_ignored(scene: Scene) -> None:
    payload = {**scene.about("active"), "student_id": "somebody else", "role": "admin", "__proto__": {}, "": None}
    async with calling(scene.here, scene.tokens["ann"]) as ann:
        assert (await ann.ask(JOIN, payload))["ok"]


# Frames


async def test_a_frame_of_a_megabyte_closes_that_connection_and_no_other(scene: Scene) -> None:
    async with calling(scene.here, scene.tokens["bob"]) as bob, calling(scene.here, scene.tokens["ann"]) as ann:
        await bob.client.emit(JOIN, {**scene.about("active"), "padding": "x" * MEGABYTE}, namespace=bob.namespace)
        await asyncio.wait_for(bob.client.wait(), SECONDS)
        assert (await ann.ask(JOIN, scene.about("active")))["ok"]


async def test_a_post_of_a_megabyte_is_refused(scene: Scene) -> None:
    """At once, though that client does not poll, and ends its session."""
    url = f"{scene.here}/socket.io/?EIO=4&transport=polling"
    async with calling(scene.here, scene.tokens["ann"]) as ann, aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            sid = json.loads((await response.text())[1:])["sid"]
        async with asyncio.timeout(SECONDS), session.post(f"{url}&sid={sid}", data="4" + "x" * MEGABYTE) as response:
            assert response.status == 400
        async with session.get(f"{url}&sid={sid}") as response:
            assert response.status == 400
        assert (await ann.ask(JOIN, scene.about("active")))["ok"]


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
async def test_a_frame_that_is_no_packet_hurts_nobody(scene: Scene, case: str) -> None:
    """Answered, or ignored, or the end of that connection; the next socket neither hears nor feels it."""
    url = f"{scene.here}/socket.io/?EIO=4&transport=websocket"
    async with calling(scene.here, scene.tokens["ann"]) as ann, aiohttp.ClientSession() as session:
        async with asyncio.timeout(SECONDS), session.ws_connect(url) as socket:
            assert (await socket.receive_str())[0] == "0"
            await socket.send_str("40" + json.dumps({"token": scene.tokens["bob"]}))
            assert (await socket.receive_str())[:2] == "40"
            await socket.send_str(FRAMES[case])
            # An event after it is answered, unless the connection is over.
            await socket.send_str('427["nobodyKnowsThis"]')
            async for message in socket:
                if message.data.startswith("437"):
                    break
        assert (await ann.ask(JOIN, scene.about("active")))["ok"]


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
async def test_a_command_that_may_not_be_is_refused(scene: Scene, refusal: Refusal) -> None:
    session_id = scene.sessions.get(refusal.state, "0" * 24)
    async with calling(scene.here, scene.tokens[refusal.who]) as caller:
        await refused(caller, refusal.event, {"session_id": session_id}, code=refusal.code, session_id=session_id)


async def test_a_service_may_read_a_roll(scene: Scene) -> None:
    async with calling(scene.here, scene.tokens["service"]) as service:
        assert len((await service.ask(READ, scene.about("active")))["attendanceRecords"]) == 2


@pytest.mark.parametrize("state", ["active", "completed"])
async def test_joining_twice_answers_as_the_first_time(scene: Scene, state: str) -> None:
    """Wherever, and also after the end."""
    async with calling(scene.here, scene.tokens["ann"]) as one, calling(scene.there, scene.tokens["ann"], namespace="/") as two:
        answers = [await caller.ask(JOIN, scene.about(state)) for caller in (one, two, one)]
    for answer in answers:
        del answer["server_time"]
    roll = (await scene.seen())[state]
    (record,) = (record for record in roll["attendanceRecords"] if record["student_id"] == scene.lecture.students[0])
    assert answers[0]["ok"]
    assert answers == [answers[0]] * 3
    assert answers[0]["joined_at"] == record["joined_at"]


async def test_commands_of_one_socket_for_one_session_are_answered_in_the_order_sent(scene: Scene) -> None:
    answers: list[tuple[int, bool]] = []
    everything = asyncio.Event()
    commands = 20
    async with calling(scene.here, scene.tokens["ann"]) as ann:
        for number in range(commands):

            def answered(answer: Payload, number: int = number) -> None:
                answers.append((number, answer["ok"]))
                if len(answers) == commands:
                    everything.set()

            # A join comes back from another service than the refusal of a read or a start.
            event = (JOIN, READ, JOIN, START)[number % 4]
            await ann.client.emit(event, scene.about("active"), namespace=ann.namespace, callback=answered)
        await asyncio.wait_for(everything.wait(), SECONDS)

    assert answers == [(number, number % 2 == 0) for number in range(commands)]


# HTTP


@dataclass(frozen=True)
class Request:
    """A request that is refused. `{course}` and the like in the path stand for the scene's; `at` is what the details name."""

    method: str
    path: str
    status: int
    code: str
    at: str | None = None
    who: str = "admin"
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.options} by {self.who}"[:120]


COURSE = {"title": "Algorithms", "teacher_ids": ["t1"], "time_zone": "UTC"}


def putting_course(status: int, code: str, at: str | None = None, who: str = "admin", **changes: Any) -> Request:
    """Change the scene's course, wrongly."""
    body = {name: value for name, value in {**COURSE, **changes}.items() if value is not ...}
    return Request("PUT", "/courses/{course}", status, code, at, who, {"json": body})


def making_session(status: int, code: str, at: str | None = None, who: str = "admin", **changes: Any) -> Request:
    """Schedule a session, wrongly."""
    body = {
        "course_id": "{course}",
        "title": "Sorting",
        "date": "2026-11-24",
        "start_time": "10:00",
        "end_time": "11:30",
        **changes,
    }
    return Request("POST", "/sessions", status, code, at, who, {"json": {k: v for k, v in body.items() if v is not ...}})


def putting_roster(at: str | None, body: object, **options: object) -> Request:
    """Replace the scene's roster, wrongly."""
    given = {"data": body} if isinstance(body, bytes) else {"json": body}
    return Request("PUT", "/courses/{course}/roster", 400, "invalid", at, options={**given, **options})


def changing_session(at: str, **changes: Any) -> Request:
    """Change a session of the scene, wrongly."""
    return Request("PATCH", "/sessions/{scheduled}", 400, "invalid", at, options={"json": changes})


CSV = {"headers": {"Content-Type": "text/csv"}}
EVERYWHERE = (
    ("PUT", "/courses/{course}"),
    ("GET", "/courses/{course}"),
    ("GET", "/courses"),
    ("PUT", "/courses/{course}/roster"),
    ("GET", "/courses/{course}/roster"),
    ("POST", "/sessions"),
    ("GET", "/sessions"),
    ("GET", "/sessions/{active}"),
    ("POST", "/sessions/{scheduled}/start"),
    ("POST", "/sessions/{active}/end"),
    ("GET", "/sessions/{active}/attendance"),
)
REQUESTS = (
    Request("GET", "/nothing", 404, "not_found"),
    Request("GET", "/courses/a/b/c", 404, "not_found"),
    Request("POST", "/sessions/{active}/start/", 404, "not_found"),
    Request("PATCH", "/courses", 405, "not_found"),
    Request("GET", "/sessions/{active}/start", 405, "not_found"),
    # Ids
    *(
        Request(method, f"/courses/{bad}{rest}", 400, "invalid", "course_id", options=options)
        for bad in ("a%20b", "%00", "%C3%A9", "x" * 65, "a%0A")
        for method, rest, options in (("GET", "", {}), ("PUT", "", {"json": COURSE}), ("GET", "/roster", {}))
    ),
    *(Request("GET", f"/sessions/{bad}", 400, "invalid", "session_id") for bad in ("a%20b", "%00", "x" * 65)),
    Request("POST", "/sessions/%00/start", 400, "invalid", "session_id"),
    Request("GET", "/sessions?course_id=a%20b", 400, "invalid", "course_id"),
    # What is not there
    *(Request("GET", path, 404, "course_not_found") for path in ("/courses/none", "/courses/none/roster")),
    Request("PUT", "/courses/none/roster", 404, "course_not_found", options={"json": []}),
    Request("GET", "/sessions?course_id=none", 404, "course_not_found"),
    making_session(404, "course_not_found", course_id="none"),
    *(Request("GET", f"/sessions/none{rest}", 404, "session_not_found") for rest in ("", "/attendance")),
    *(Request("POST", f"/sessions/none/{verb}", 404, "session_not_found") for verb in ("start", "end")),
    # Who may
    putting_course(403, "forbidden", who="other teacher"),
    putting_course(403, "forbidden", who="ann"),
    putting_course(403, "forbidden", who="service"),
    *(
        Request("PUT", "/courses/new", 403, "forbidden", who=who, options={"json": COURSE})
        for who in ("ann", "teacher", "service")
    ),
    *(
        Request("PUT", "/courses/{course}/roster", 403, "forbidden", who=who, options={"json": []})
        for who in ("ann", "other teacher", "service")
    ),
    *(Request("GET", "/courses/{course}/roster", 403, "forbidden", who=who) for who in ("ann", "other teacher")),
    *(making_session(403, "forbidden", who=who) for who in ("ann", "other teacher", "service")),
    *(
        Request(method, path, 403, "forbidden", who=who)
        for method, path in EVERYWHERE[-3:]
        for who in ("ann", "other student", "other teacher")
    ),
    # When
    Request("GET", "/sessions/{scheduled}/attendance", 409, "session_not_active"),
    Request("POST", "/sessions/{scheduled}/end", 409, "session_not_active"),
    Request("POST", "/sessions/{completed}/start", 409, "session_completed"),
    # Bodies
    *(
        Request(method, path, 400, "invalid", options={"data": body})
        for method, path in (EVERYWHERE[0], EVERYWHERE[3], EVERYWHERE[5])
        for body in (b"", b"{", b"\xff\xfe", b"null", b'"text"', b"5", b"[" * 50_000, b'{"title": "\xff"}', b"NaN")
    ),
    *(
        putting_course(400, "invalid", at, "admin", **{name: value})
        for name, value, at in (
            ("title", ..., "title"),
            ("title", 5, "title"),
            ("title", "", "title"),
            ("title", "a\0b", "title"),
            ("title", "x" * 201, "title"),
            ("teacher_ids", ..., "teacher_ids"),
            ("teacher_ids", "t1", "teacher_ids"),
            ("teacher_ids", ["t1", 5], "teacher_ids[1]"),
            ("teacher_ids", ["t 1"], "teacher_ids[0]"),
            ("teacher_ids", ["t1"] * 101, "teacher_ids"),
            ("time_zone", "Mars/Olympus", "time_zone"),
            ("time_zone", "../../etc/passwd", "time_zone"),
            ("time_zone", "Europe", "time_zone"),
            ("time_zone", None, "time_zone"),
        )
    ),
    *(
        making_session(400, "invalid", at, "admin", **{name: value})
        for name, value, at in (
            ("course_id", ..., "course_id"),
            ("course_id", "a b", "course_id"),
            ("title", ..., "title"),
            ("title", ["Sorting"], "title"),
            ("description", "x" * 2001, "description"),
            ("date", ..., "date"),
            ("date", "tomorrow", "date"),
            ("date", "2026-02-30", "date"),
            ("date", 20261124, "date"),
            ("date", "9" * 30, "date"),
            ("start_time", "24:00", "start_time"),
            ("start_time", "9:00", "start_time"),
            ("end_time", ..., "end_time"),
            ("end_time", "later", "end_time"),
            ("end_time", "11:60", "end_time"),
            ("end_time", 1130, "end_time"),
            ("end_time", "10:00", "end_time"),
            ("time_zone", "Mars/Olympus", "time_zone"),
            ("time_zone", "/etc/localtime", "time_zone"),
            ("time_zone", "a\0b", "time_zone"),
            ("check_in", 5, "check_in"),
            ("check_in", {"late_after_minutes": -1}, "check_in"),
            ("check_in", {"late_after_minutes": 1441}, "check_in"),
            ("check_in", {"closes_after_minutes": 10**9}, "check_in"),
            ("check_in", {"late_after_minutes": "ten"}, "check_in.late_after_minutes"),
            ("check_in", {"late_after_minutes": 1.5}, "check_in.late_after_minutes"),
        )
    ),
    *(
        Request("POST", "/sessions", 400, "invalid", "Idempotency-Key", options={"headers": {"Idempotency-Key": key}, **given})
        for key in ("", "x" * 201)
        for given in (making_session(400, "invalid").options,)
    ),
    *(
        changing_session(at, **{name: value})
        for name, value, at in (
            ("title", None, "title"),
            ("title", "", "title"),
            ("title", 5, "title"),
            ("title", "x" * 201, "title"),
            ("title", "a\nb", "title"),
            ("description", 5, "description"),
            ("description", "x" * 2001, "description"),
            ("description", "a\0b", "description"),
            ("date", None, "date"),
            ("date", "tomorrow", "date"),
            ("date", "2026-02-30", "date"),
            ("start_time", None, "start_time"),
            ("start_time", "24:00", "start_time"),
            ("start_time", "11:30", "end_time"),
            ("end_time", "10:00", "end_time"),
            ("end_time", 1130, "end_time"),
            ("time_zone", None, "time_zone"),
            ("time_zone", "Mars/Olympus", "time_zone"),
            ("meeting_link", ["x"], "meeting_link"),
            ("meeting_link", "x" * 2001, "meeting_link"),
            ("check_in", None, "check_in"),
            ("check_in", [], "check_in"),
            ("check_in", {"late_after_minutes": -1}, "check_in"),
            ("check_in", {"closes_after_minutes": 1441}, "check_in"),
            ("check_in", {"late_after_minutes": "ten"}, "check_in.late_after_minutes"),
            ("check_in", {"closes_after_minutes": 1.5}, "check_in.closes_after_minutes"),
        )
    ),
    *(
        Request("PATCH", "/sessions/{scheduled}", 400, "invalid", options={"data": body})
        for body in (b"{", b"\xff\xfe", b"null", b"[]", b'"text"', b"[" * 50_000)
    ),
    Request("PATCH", "/sessions/none", 404, "session_not_found", options={"json": {"title": "T"}}),
    Request("PATCH", "/sessions/{completed}", 409, "session_completed", options={"json": {"title": "T"}}),
    *(
        Request("PATCH", "/sessions/{scheduled}", 403, "forbidden", who=who, options={"json": {"title": "T"}})
        for who in ("ann", "other teacher", "service")
    ),
    # Rosters
    putting_roster(None, {"student_id": "s1", "name": "Ann"}),
    putting_roster("[1].student_id", [{"student_id": "s1", "name": "Ann"}, {"student_id": "s 2", "name": "Bob"}]),
    putting_roster("[0].name", [{"student_id": "s1"}]),
    putting_roster("[0].name", [{"student_id": "s1", "name": 5}]),
    putting_roster("line 2", [{"student_id": each, "name": "Ann"} for each in ("s1", "s2", "s1")]),
    putting_roster("line 4", b"student_id,name\ns1,Ann\ns2,Bob\ns1,Ann\n", **CSV),
    putting_roster("line 3", b"student_id,name\ns1,Ann\ns 2,Bob\n", **CSV),
    putting_roster("line 3", b"student_id,name\r\ns1,Ann\r\n,Bob\r\n", **CSV),
    putting_roster("line 2", b'student_id,name\ns1,"Ann\n', **CSV),
    putting_roster("line 1", b"id,name\ns1,Ann\n", **CSV),
    putting_roster("line 1", b"", **CSV),
    putting_roster("", b"student_id,name\ns1,\xff\n", **CSV),
    # Pages
    *(
        Request("GET", f"{path}{'&' if '?' in path else '?'}limit={limit}", 400, "invalid", "limit")
        for path in ("/courses", "/courses/{course}/roster", "/sessions?course_id={course}")
        for limit in ("0", "201", "-1", "ten", "", "1.5", "9" * 30, "%C2%B2")
    ),
    *(
        Request("GET", f"{path}{'&' if '?' in path else '?'}cursor={cursor}", 400, "invalid", "cursor")
        for path in ("/courses", "/courses/{course}/roster", "/sessions?course_id={course}")
        for cursor in ("", "%00", "x" * 201)
    ),
    Request("GET", "/sessions?course_id={course}&status=late", 400, "invalid", "status"),
)


def filled(value: Any, places: dict[str, str]) -> Any:
    """Put the scene's ids in."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda place: places[place[1]], value)
    if isinstance(value, dict):
        return {key: filled(each, places) for key, each in value.items()}
    return value


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
async def test_a_request_that_is_wrong_is_refused(scene: Scene, request_: Request) -> None:
    places = {"course": scene.lecture.course_id, **scene.sessions}
    path, options = filled(request_.path, places), filled(request_.options, places)

    status, body = await http(scene.here, request_.method, path, scene.tokens[request_.who], **options)

    error = body["error"]
    assert (status, error["code"]) == (request_.status, request_.code), error
    assert body == {"error": error}
    assert set(error) <= {"code", "message", "retryable", "details"}
    assert error["message"]
    assert error["retryable"] is False
    if request_.at is not None:
        named = [f"line {each['line']}" if "line" in each else each["field"] for each in error["details"]]
        assert named == [request_.at]


AUTHORIZATIONS: dict[str, tuple[dict[str, str], str]] = {
    "no header": ({}, "unauthenticated"),
    "another scheme": ({"Authorization": "Basic YTpi"}, "unauthenticated"),
    "no token": ({"Authorization": "Bearer "}, "unauthenticated"),
    **{name: ({"Authorization": f"Bearer {bad}"}, code) for name, (bad, code) in BAD_TOKENS.items()},
}


@pytest.mark.parametrize("case", AUTHORIZATIONS)
async def test_a_request_without_a_good_token_is_refused(scene: Scene, case: str) -> None:
    """Whatever is asked for, and before anything of it is looked at."""
    headers, code = AUTHORIZATIONS[case]
    places = {"course": scene.lecture.course_id, **scene.sessions}
    answers = await asyncio.gather(
        *(http(scene.here, method, filled(path, places), headers=headers, data=b"{") for method, path in EVERYWHERE)
    )
    assert {(status, body["error"]["code"]) for status, body in answers} == {(401, code)}


@pytest.mark.parametrize(("method", "path", "mebibytes"), [(*EVERYWHERE[3], 8), (*EVERYWHERE[5], 1)])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_above_1_mib_is_refused_and_a_roster_above_8(
    scene: Scene, method: str, path: str, mebibytes: int, announced: bool
) -> None:
    """Whether its length is announced or not."""
    line = b'{"student_id": "s1", "name": "Ann"},'
    whole = b"[" + line * (mebibytes * MEGABYTE // len(line) + 1)

    async def in_parts() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), MEGABYTE):
            yield whole[start : start + MEGABYTE]

    body = whole if announced else in_parts()
    answer = await http(scene.here, method, filled(path, {"course": scene.lecture.course_id}), scene.tokens["admin"], data=body)
    assert (answer[0], answer[1]["error"]["code"]) == (413, "invalid")
    assert str(mebibytes * MEGABYTE) in answer[1]["error"]["message"]


async def test_the_roster_of_who_may_never_put_one_is_not_even_read(scene: Scene) -> None:
    path = f"/courses/{scene.lecture.course_id}/roster"
    for role in get_args(Role):
        status, body = await http(scene.here, "PUT", path, token(unique("who"), role), data=b"{")
        expected = (400, "invalid") if role in ("teacher", "admin") else (403, "forbidden")
        assert (status, body["error"]["code"]) == expected


async def test_the_same_idempotency_key_makes_one_session(rig: Rig) -> None:
    """And another body with it is a conflict; another person's same key is another key."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=0)
    teacher, admin = bearer(lecture.teacher, "teacher"), an_admin()
    key = {"Idempotency-Key": unique("key")}
    session = {
        "course_id": lecture.course_id,
        "title": "Sorting",
        "date": "2026-11-25",
        "start_time": "10:00",
        "end_time": "11:30",
    }

    async def make(url: str, bearer: str, **changes: str) -> tuple[int, Payload]:
        return await http(url, "POST", "/sessions", bearer, json={**session, **changes}, headers=key)

    answers = await asyncio.gather(*(make(url, teacher) for url in (here, there, here, there)))
    other_body = await make(there, teacher, title="Searching")
    other_person = await make(there, admin)

    assert {status for status, _ in answers} == {201}
    assert len({body["id"] for _, body in answers}) == 1
    assert (other_body[0], other_body[1]["error"]["code"]) == (409, "conflict")
    assert other_person[0] == 201
    assert other_person[1]["id"] != answers[0][1]["id"]
    _, page = await http(here, "GET", f"/sessions?course_id={lecture.course_id}", admin)
    assert len(page["items"]) == 3
