"""No log says who anybody is, nor what anybody showed or wrote: no token, name, e-mail address or remark, at any level.

The flow of a lesson, refusals, defects that the database quotes, messages that nobody can read, and requests that are none;
all with words that are found nowhere else.
"""

import asyncio
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from socketio.exceptions import ConnectionError as RefusedConnection

from shared.amqp.bus import open_amqp
from shared.live import Names, open_redis
from shared.messages import ATTENDANCE_COMMANDS, SESSION_COMMANDS
from tests.contract.bus_talk import eventually, send_once
from tests.system.rig import Rig, token, unique
from tests.system.talk import Caller, Lecture, Payload, a_lecture, calling, http

WHAT = ("Name", "mail", "remark", "reason", "title", "token", "event", "link", "device", "key", "sid", "origin")


class Words:
    """One word of each kind that nobody else uses, and the tokens that were shown."""

    def __init__(self) -> None:
        self._made = {kind: f"{kind}{uuid4().hex}" for kind in WHAT}
        self.tokens: list[str] = []

    def __getitem__(self, kind: str) -> str:
        return self._made[kind]

    def token(self, *arguments: str, **options: float) -> str:
        """A token of somebody with that name."""
        shown = token(*arguments, name=f"{self['Name']} token", **options)  # type: ignore[arg-type]
        self.tokens.append(shown)
        return shown

    def leaked(self, log: str) -> dict[str, str]:
        """What of all this is in a log, each with what stands around it."""
        needles = {**self._made, **{shown[:30]: part for shown in self.tokens for part in shown.split(".")[1:]}}
        found = {kind: log.find(needle) for kind, needle in needles.items()}
        return {kind: log[max(0, at - 200) : at + 200] for kind, at in found.items() if at >= 0}


@pytest.fixture
def words() -> Words:
    return Words()


async def a_lesson(rig: Rig, words: Words) -> Lecture:
    """Names, addresses and remarks go all the way that they go on a good day, and are refused on the way."""
    url, lecture = rig.gateways[0], await a_lecture(rig.gateways[0], students=2)
    student, path = lecture.students[0], f"/courses/{lecture.course_id}"
    teacher, admin = words.token(lecture.teacher, "teacher"), words.token("admin", "admin")
    person: Payload = {"name": words["Name"], "email": f"{words['mail']}@example.edu"}
    rows = [{"student_id": student, **person}]
    assert (await http(url, "PUT", f"{path}/roster", admin, json=rows))[0] == 200
    for bad in ([*rows, *rows], [{**rows[0], "student_id": words["Name"] + " "}], [{**rows[0], "email": [words["mail"]]}]):
        assert (await http(url, "PUT", f"{path}/roster", admin, json=bad))[0] == 400
    assert (await http(url, "PUT", f"{path}/roster", words.token("other", "teacher"), json=rows))[0] == 403
    session = f"/sessions/{lecture.session_id}"
    changes = {"title": words["title"], "meeting_link": f"https://{words['link']}.example/"}
    assert (await http(url, "PATCH", session, admin, json=changes))[0] == 200
    bad_name = f"{session}/attendance/{words['Name']}%20"
    assert (await http(url, "PUT", bad_name, admin, json={"status": words["remark"]}))[0] == 400
    async with calling(url, teacher) as staff, calling(rig.gateways[-1], words.token(student, "student")) as own:
        assert (await staff.ask("startAttendanceSession", lecture.about))["ok"]
        assert (await own.ask("joinAttendanceSession", {**lecture.about, "device_id": words["device"]}))["ok"]
        mark = {**lecture.about, "student_id": student, "status": "late", "remarks": words["remark"]}
        assert (await staff.ask("markStudentAttendance", {**mark, "reason": words["reason"]}))["ok"]
        await refusals(staff, own, mark, words)
    return lecture


async def refusals(staff: Caller, own: Caller, mark: Payload, words: Words) -> None:
    """What a socket may say that is refused."""
    for event, payload in (
        ("markStudentAttendance", {**mark, "status": words["remark"]}),
        ("markStudentAttendance", {**mark, "student_id": words["Name"][:40]}),
        ("markStudentAttendance", words["remark"]),
        (words["event"], mark),
        ("refreshToken", {"token": words["token"]}),
        ("refreshToken", {"token": words.token("somebody", "admin")}),
        ("reopenAttendanceSession", {**mark, "reason": [words["reason"]]}),
    ):
        assert not (await staff.ask(event, payload))["ok"]
    assert not (await own.ask("markStudentAttendance", mark))["ok"]


async def strangers(url: str, words: Words) -> None:
    """Those who are not let in, or send what is no request, with tokens wherever one may stand."""
    good = words.token("ann", "student")
    for shown in (words["token"], f"{good}x", f"a.{words['token']}.c", words.token("ann", "student", seconds=-60), "ä" + good):
        with pytest.raises(RefusedConnection):
            async with calling(url, shown):
                raise AssertionError("was let in")
    for shown in (words["token"], f"{good}x", words.token("ann", "student", seconds=-60)):
        assert (await http(url, "GET", f"/courses?token={good}&x={words['token']}", shown))[0] == 401
        assert (await http(url, "GET", f"/{words['token']}/{good}", shown))[0] == 404
    socket = f"{url}/socket.io/?EIO=4&transport="
    async with aiohttp.ClientSession() as session:
        for address, headers in (
            (f"{socket}polling&token={good}", {"Origin": f"https://{words['origin']}"}),
            (f"{socket}polling&sid={words['sid']}", {}),
            (f"{socket}{words['token']}", {}),
            (f"{socket}websocket&sid={words['sid']}", {}),
        ):
            async with session.get(address, headers=headers) as answer:
                assert answer.status == 400
            async with session.put(address, data=good, headers=headers) as answer:
                assert answer.status in (400, 405)
        for said in (
            f"4{words['token']}",
            f'42["x",{good}',
            f"40/{words['event']},",
            f'42/{words["event"]},["{good}"]',
            "9" + good,
        ):
            async with session.ws_connect(f"{socket}websocket") as raw:
                await raw.receive(timeout=10)
                await raw.send_str(f'40{{"token":"{good}"}}')
                await raw.receive(timeout=10)
                await raw.send_str(said)
                await raw.close()
    for line in (
        f"GET /?token={good} HTTP/9.9",
        f"{words['token']}",
        f"GET / HTTP/1.1\r\nAuthorization Bearer {good}",
        "\x16" + good,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"{line}\r\n\r\n".encode())
        writer.write_eof()
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()


async def unreadable(rig: Rig, lecture: Lecture, words: Words) -> None:
    """Messages on the broker and in Redis that nobody can read."""
    names = Names(rig.environment["ROLLCALL_REDIS_PREFIX"])
    bodies = [
        f'[{{"type":"{words["Name"]}","x":1}}]',
        f'[{{"type":"MarkRecord","status":"{words["remark"]}","command_id":5}}]',
        words["remark"],
        f'{{"{words["key"]}":1}}',
    ]
    async with open_amqp(rig.environment["ROLLCALL_AMQP_URL"]) as bus:
        for queue in (ATTENDANCE_COMMANDS, SESSION_COMMANDS):
            for body in bodies:
                await send_once(bus, queue, body.encode())
    async with open_redis(rig.environment["ROLLCALL_REDIS_URL"]) as redis:
        channels = (names.roll_channel(lecture.session_id), names.course_channel(lecture.course_id), names.cuts_channel())
        for channel in channels:
            for body in bodies:
                await redis.publish(channel, body)


async def test_no_log_says_who_anybody_is_or_what_they_showed_or_wrote(cluster: Rig, words: Words) -> None:
    lecture = await a_lesson(cluster, words)
    await strangers(cluster.gateways[0], words)
    async with calling(cluster.gateways[0], words.token(lecture.teacher, "teacher")) as staff:
        assert (await staff.ask("syncAttendanceSession", lecture.about))["ok"]
        assert (await staff.ask("subscribeToCourse", {"course_id": lecture.course_id}))["ok"]
        await unreadable(cluster, lecture, words)
        await a_defect_that_the_database_quotes(cluster, staff, lecture, words)
    expected = (
        "worker.parked",
        "CheckViolationError",
        "rooms.malformed_event",
        "courses.malformed_event",
        "live.message_failed",
    )
    await eventually(lambda: all(line in cluster.logs() for line in expected))

    for name, process in cluster.processes.items():
        assert words.leaked(process.log.read_text()) == {}, name


async def a_defect_that_the_database_quotes(rig: Rig, staff: Caller, lecture: Lecture, words: Words) -> None:
    """A remark that breaks a constraint: Postgres tells the whole row, with it and with the name."""
    name, remark = unique("no").replace("-", "_"), f"{words['remark']} again"
    forbid = f"ADD CONSTRAINT {name} CHECK (remarks <> '{remark}')"
    database = await asyncpg.connect(rig.database_urls["attendance_service"])
    try:
        await database.execute(f"ALTER TABLE attendance.records {forbid}")
        mark = {**lecture.about, "student_id": lecture.students[0], "status": "excused", "remarks": remark}
        answer = await staff.ask("markStudentAttendance", mark)
        assert answer["error"]["code"] == "internal"
    finally:
        await database.execute(f"ALTER TABLE attendance.records DROP CONSTRAINT IF EXISTS {name}")
        await database.close()
