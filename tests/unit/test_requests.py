"""Whichever way a caller came, what they ask is begun within its time or never: two seconds, thirty for rosters and reports;
what the gateway itself must know is asked again.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast, get_args

import pytest

from gateway.calls import Calls
from gateway.http import routes
from gateway.http.rolls import Rolls
from gateway.payloads import (
    BulkPayload,
    CoursePayload,
    MarkPayload,
    SessionPatch,
    SessionPayload,
    StudentBody,
    StudentCommandPayload,
    UpdatePayload,
)
from gateway.queries import Nothing
from gateway.requests import Requests, answered
from shared.errors import NO_ROLL, Refused, Unavailable
from shared.messages import (
    Actor,
    AnyCommand,
    Command,
    Heard,
    JoinRoll,
    News,
    PutRoster,
    ReadOutline,
    ReadRoll,
    ReplyTo,
    RosterStored,
    SummarizeCourse,
)

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ADA = Actor("ada", "Ada", "teacher")
A_SESSION = SessionPayload(course_id="c1", title="Rings", date="2026-11-24", start_time="10:00", end_time="11:30")
ASKED: dict[str, tuple[Any, ...]] = {
    "put_course": (ADA, "c1", CoursePayload(title="Algebra", teacher_ids=())),
    "archive_course": (ADA, "c1"),
    "read_course": (ADA, "c1"),
    "read_standing": ("c1", ("ann",)),
    "list_courses": (ADA, 50, None),
    "put_roster": (ADA, "c1", ()),
    "enrol": (ADA, "c1", "ann", StudentBody()),
    "remove": (ADA, "c1", "ann"),
    "read_outline": (ADA, "c1"),
    "summarize": ("c1",),
    "read_active_sessions": ("c1",),
    "read_roster": (ADA, "c1", 50, None),
    "create_session": (ADA, A_SESSION),
    "read_session": (ADA, "5e55"),
    "change_session": (ADA, "5e55", SessionPatch()),
    "cancel": (ADA, "5e55"),
    "list_sessions": (ADA, "c1", None, 50, None),
    "start": (ADA, "5e55"),
    "end": (ADA, "5e55"),
    "reopen": (ADA, "5e55", "by mistake"),
    "submit": (ADA, "5e55"),
    "mark": (ADA, MarkPayload(session_id="5e55", student_id="ann", status="late")),
    "mark_many": (ADA, BulkPayload(session_id="5e55", updates=(UpdatePayload(student_id="ann", status="late"),))),
    "clear": (ADA, StudentCommandPayload(session_id="5e55", student_id="ann")),
    "sync": (ADA, "5e55", None),
    "read_roll": (ADA, "5e55"),
    "read_history": (ADA, "5e55", 0, 50),
    "read_own_records": (ADA, None, 50, None),
    "read_changes": ("5e55", 0),
}
LONG = (PutRoster, ReadOutline, SummarizeCourse)


class Recorder:
    """Keeps what is asked. It knows no roll, and stores rosters on which there are news to wait for."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.waiting: list[str] = []

    def addresses(self, count: int) -> list[ReplyTo]:
        return [ReplyTo("answers", str(number)) for number in range(count)]

    def begin_all(self, asking: Sequence[tuple[Command, str]], expect: type[Any], tell: Any) -> None:
        self.commands += [command for command, _ in asking]
        self.waiting += [who for _, who in asking]

    async def ask(self, command: Command, expect: type[Any]) -> Any:
        self.commands.append(command)
        if expect is RosterStored:
            return RosterStored(added=0, updated=0, removed=0, news=News(course_id="c1", session_versions={"5e55": 2}))
        if expect is Heard:
            return Heard()
        raise Refused(NO_ROLL)


async def asked(name: str, *, received_at: datetime = NOW) -> list[Command]:
    """Ask one thing; tell which commands went out."""
    recorder = Recorder()
    options = {"idempotency_key": None, "fingerprint": "f"} if name == "create_session" else {}
    requests = Requests(cast(Calls, recorder), lambda: NOW).received(received_at)
    try:
        await getattr(requests, name)(*ASKED[name], **options)
    except Refused as refusal:
        assert refusal.code == NO_ROLL
    return recorder.commands


@pytest.mark.parametrize("name", ASKED)
async def test_each_command_must_be_begun_within_its_time(name: str) -> None:
    for command in await asked(name):
        seconds = (command.deadline - command.received_at).total_seconds()
        assert (command.received_at, seconds) == (NOW, 30 if isinstance(command, LONG) else 2)


async def test_nothing_that_can_be_asked_is_left_out() -> None:
    sent = {type(command) for name in ASKED for command in await asked(name)}

    assert {*ASKED, "begin_joins", "received", "seconds_left", "explain_no_roll"} == {
        name for name in vars(Requests) if not name.startswith("_")
    }
    assert sent | {JoinRoll} == set(get_args(AnyCommand))


async def test_joins_that_go_together_are_each_one_s_own() -> None:
    recorder, came = Recorder(), NOW - timedelta(seconds=1.5)
    ann, ben = (Actor(name, name.title(), "student") for name in ("ann", "ben"))

    joins = [(ann, "5e55", None, came, "ann waits"), (ben, "5e56", "ben-1", NOW, "ben waits")]
    Requests(cast(Calls, recorder), lambda: NOW).begin_joins(joins, print)

    first, second = recorder.commands
    assert isinstance(first, JoinRoll)
    assert isinstance(second, JoinRoll)
    assert (first.actor, first.session_id, first.received_at, first.deadline) == (
        ann,
        "5e55",
        came,
        came + timedelta(seconds=2),
    )
    assert (second.actor, second.session_id, second.command_id, second.received_at) == (ben, "5e56", "ben-1", NOW)
    assert first.command_id
    assert [each.reply_to for each in recorder.commands] == recorder.addresses(2)
    assert recorder.waiting == ["ann waits", "ben waits"]


@pytest.mark.parametrize("name", ["sync", "start", "mark"])
async def test_what_came_a_while_ago_has_only_the_rest_of_its_time(name: str) -> None:
    came = NOW - timedelta(seconds=1.5)
    for command in await asked(name, received_at=came):
        assert (command.received_at, command.deadline) == (came, came + timedelta(seconds=2))


async def test_a_roll_to_be_saved_has_as_long_as_other_reports() -> None:
    recorder, nobody = Recorder(), cast(Any, None)
    rolls = Rolls(nobody, Requests(cast(Calls, recorder), lambda: NOW), lambda: NOW)
    request = routes.Asked(ADA, {"session_id": "5e55"}, Nothing(), {})
    for asking in (rolls.roll_as_csv, rolls.roll_as_xlsx, rolls.read_roll):
        with pytest.raises(Refused):
            await asking(request)

    seconds = [(each.deadline - NOW).total_seconds() for each in recorder.commands if isinstance(each, ReadRoll)]
    assert seconds == [30, 30, 2]


async def test_what_must_be_known_is_asked_again_unless_that_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.requests.AGAIN_SECONDS", 0)
    becomes: list[Exception | str] = [Refused("timeout"), Unavailable("no broker"), "known"]

    async def ask() -> str:
        next_one = becomes.pop(0)
        if isinstance(next_one, Exception):
            raise next_one
        return next_one

    assert await answered(ask, "a course") == "known"
    becomes = [Refused("course_not_found")]
    with pytest.raises(Refused, match="course"):
        await answered(ask, "a course")
