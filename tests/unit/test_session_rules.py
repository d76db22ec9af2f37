"""The rules of courses and sessions: who may do what, when a meeting is, what starting and ending make."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from session_service import rules
from session_service.rules import Course, End, Session, Turn
from session_service.timetable import meeting, zone_fault
from session_service.views import (
    read_session_cursor,
    session_cursor,
    session_ended,
    session_started,
    unreported,
    view_session,
)
from shared.errors import Refused
from shared.messages import (
    Actor,
    CheckIn,
    CreateSession,
    Enrolled,
    ExplainNoRoll,
    PutCourse,
    Role,
    SessionStatus,
    Student,
)

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ADA = Actor("ada", "Ada", "teacher")
BOB = Actor("bob", "Bob", "teacher")
ANN = Actor("ann", "Ann", "student")
ROOT = Actor("root", "Root", "admin")
ROBOT = Actor("robot", "Robot", "service")


def a_course(**changes: Any) -> Course:
    """A course of Ada's, in Berlin."""
    course = Course(
        id="c1",
        title="Algebra",
        teacher_ids=("ada",),
        time_zone="Europe/Berlin",
        created_at=NOW,
        updated_at=NOW,
    )
    return replace(course, **changes)


def a_session(status: SessionStatus = "scheduled", **changes: Any) -> Session:
    """A session of that course, as far as its status says."""
    session = rules.create_session(a_course(), to_create(), NOW)
    if status in ("active", "completed"):
        session = rules.start_session(session, ADA, NOW + timedelta(minutes=1))
    if status == "completed":
        session = rules.end_session(session, ADA, NOW + timedelta(minutes=60))
    return replace(session, status=status, **changes)


def to_create(actor: Actor = ADA, **changes: Any) -> CreateSession:
    """A command to schedule a session on the 24th, nine to half past ten."""
    command = CreateSession(
        **envelope(actor),
        session_id="0123456789abcdef01234567",
        course_id="c1",
        title="Rings",
        description=None,
        date="2026-11-24",
        start_time="09:00",
        end_time="10:30",
        time_zone=None,
        meeting_link=None,
        check_in=CheckIn(),
        idempotency_key=None,
        fingerprint="f",
    )
    return replace(command, **changes)


def to_put(actor: Actor, **changes: Any) -> PutCourse:
    """A command that says of the course what it is."""
    command = PutCourse(**envelope(actor), course_id="c1", title="Algebra", teacher_ids=("ada",), time_zone="Europe/Berlin")
    return replace(command, **changes)


def envelope(actor: Actor) -> dict[str, Any]:
    return {"command_id": "1", "actor": actor, "received_at": NOW, "deadline": NOW + timedelta(seconds=2)}


def code_of(refused: pytest.ExceptionInfo[Refused]) -> str:
    return refused.value.code


def fields_of(refused: pytest.ExceptionInfo[Refused]) -> list[str]:
    assert refused.value.code == "invalid"
    return [detail["field"] for detail in refused.value.details]


# Authority


@pytest.mark.parametrize(
    ("actor", "enrolled", "reads", "reads_roster", "changes"),
    [
        (ROOT, False, True, True, True),
        (ADA, False, True, True, True),
        (BOB, False, False, False, False),
        (BOB, True, True, False, False),
        (ANN, False, False, False, False),
        (ANN, True, True, False, False),
        (ROBOT, False, True, True, False),
        # The role says what kind of person it is: being listed makes nobody a teacher.
        (Actor("ada", "Ada", "student"), False, False, False, False),
        (Actor("ada", "Ada", "service"), False, True, True, False),
    ],
)
def test_the_role_says_who_it_is_and_the_course_says_what_they_may_touch(
    actor: Actor, enrolled: bool, reads: bool, reads_roster: bool, changes: bool
) -> None:
    def allowed(check: Any, *arguments: Any, **named: Any) -> bool:
        try:
            check(*arguments, **named)
        except Refused as refused:
            assert refused.code == "forbidden"
            return False
        return True

    assert allowed(rules.check_reader, actor, ("ada",), enrolled=enrolled) is reads
    assert allowed(rules.check_staff_reader, actor, ("ada",)) is reads_roster
    assert allowed(rules.check_staff, actor, ("ada",)) is changes
    assert allowed(rules.put_course, a_course(), to_put(actor), NOW) is changes
    assert allowed(rules.create_session, a_course(), to_create(actor), NOW) is changes
    assert allowed(rules.start_session, a_session(), actor, NOW) is changes
    assert allowed(rules.end_session, a_session("active"), actor, NOW) is changes


# Courses


def test_a_teacher_may_make_a_course_that_lists_them() -> None:
    made = rules.put_course(None, to_put(ADA), NOW)

    assert (made.version, made.created_at, made.teacher_ids) == (1, NOW, ("ada",))


@pytest.mark.parametrize("actor", [BOB, ANN, ROBOT, Actor("ada", "Ada", "student")])
def test_nobody_else_may_make_it(actor: Actor) -> None:
    with pytest.raises(Refused) as refused:
        rules.put_course(None, to_put(actor), NOW)

    assert code_of(refused) == "forbidden"


def test_a_teacher_may_not_add_themself_to_a_course_that_exists() -> None:
    with pytest.raises(Refused) as refused:
        rules.put_course(a_course(), to_put(BOB, teacher_ids=("ada", "bob")), NOW)

    assert code_of(refused) == "forbidden"


def test_a_course_put_as_it_is_stays_the_same_object() -> None:
    course = a_course()

    assert rules.put_course(course, to_put(ADA), NOW + timedelta(days=1)) is course


def test_a_changed_course_has_the_next_version() -> None:
    later = NOW + timedelta(days=1)

    changed = rules.put_course(a_course(), to_put(ADA, title="Geometry"), later)

    assert (changed.title, changed.version, changed.created_at, changed.updated_at) == (
        "Geometry",
        2,
        NOW,
        later,
    )


def test_a_teacher_named_twice_is_one_teacher() -> None:
    assert rules.put_course(None, to_put(ADA, teacher_ids=("ada", "bob", "ada")), NOW).teacher_ids == (
        "ada",
        "bob",
    )


def test_an_archived_course_takes_neither_changes_nor_sessions() -> None:
    archived = a_course(archived_at=NOW)

    with pytest.raises(Refused) as change:
        rules.put_course(archived, to_put(ADA, title="Geometry"), NOW)
    with pytest.raises(Refused) as creation:
        rules.create_session(archived, to_create(), NOW)

    assert (code_of(change), code_of(creation)) == ("conflict", "conflict")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Berlin",
        "Europe",
        "europe/berlin",
        "right/Europe/Berlin",
        "localtime",
        "../Europe/Berlin",
        "/etc/passwd",
        "\0",
    ],
)
def test_a_time_zone_is_one_of_the_iana_names(name: str) -> None:
    with pytest.raises(Refused) as refused:
        rules.put_course(None, to_put(ADA, time_zone=name), NOW)

    assert fields_of(refused) == ["time_zone"]


# Rosters

students = st.builds(
    Student,
    student_id=st.sampled_from("abcdef"),
    name=st.sampled_from(["Ann", "Ben"]),
    email=st.sampled_from([None, "a@example.org"]),
)
rosters = st.lists(students, unique_by=lambda student: student.student_id)


@given(old=rosters, new=rosters)
def test_what_changed_makes_the_new_roster_of_the_old_one(old: list[Student], new: list[Student]) -> None:
    change = rules.compare_rosters(old, new)

    result = {student.student_id: student for student in old if student.student_id not in change.removed}
    result |= {student.student_id: student for student in change.added + change.updated}
    assert result == {student.student_id: student for student in new}
    assert not {student.student_id for student in change.added} & {student.student_id for student in old}
    assert all(student not in old for student in change.updated)
    assert bool(change) == ({*map(repr, old)} != {*map(repr, new)})


def test_a_roster_that_names_a_student_twice_is_invalid() -> None:
    twice = [Student(student_id="ann", name="Ann"), Student(student_id="ann", name="Anne")]

    with pytest.raises(Refused) as refused:
        rules.compare_rosters([], twice)

    assert fields_of(refused) == ["student_id"]


# When a meeting is


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("day", "start", "end", "zone", "starts_at", "ends_at"),
    [
        # Winter and summer.
        ("2026-11-24", "09:00", "10:30", "Europe/Berlin", "2026-11-24T08:00", "2026-11-24T09:30"),
        ("2026-07-01", "09:00", "10:30", "Europe/Berlin", "2026-07-01T07:00", "2026-07-01T08:30"),
        ("2026-11-24", "09:00", "10:30", "Asia/Kathmandu", "2026-11-24T03:15", "2026-11-24T04:45"),
        # Over midnight, at midnight, over the new year.
        ("2026-11-24", "22:30", "00:15", "Europe/Berlin", "2026-11-24T21:30", "2026-11-24T23:15"),
        ("2026-11-24", "22:00", "00:00", "UTC", "2026-11-24T22:00", "2026-11-25T00:00"),
        ("2026-12-31", "23:00", "01:00", "Pacific/Auckland", "2026-12-31T10:00", "2026-12-31T12:00"),
        # A night that is an hour shorter, and one that is an hour longer.
        ("2027-03-27", "23:00", "05:00", "Europe/Berlin", "2027-03-27T22:00", "2027-03-28T03:00"),
        ("2026-10-24", "23:00", "05:00", "Europe/Berlin", "2026-10-24T21:00", "2026-10-25T04:00"),
        # Times that are skipped: the offset from before.
        ("2027-03-28", "02:30", "04:00", "Europe/Berlin", "2027-03-28T01:30", "2027-03-28T02:00"),
        ("2027-03-28", "01:00", "02:30", "Europe/Berlin", "2027-03-28T00:00", "2027-03-28T01:30"),
        # Cairo skips midnight itself.
        ("2026-04-23", "22:00", "00:00", "Africa/Cairo", "2026-04-23T20:00", "2026-04-23T22:00"),
        # Times that come twice: the first.
        ("2026-10-25", "02:30", "03:30", "Europe/Berlin", "2026-10-25T00:30", "2026-10-25T02:30"),
        ("2026-10-25", "01:30", "02:30", "Europe/Berlin", "2026-10-24T23:30", "2026-10-25T00:30"),
    ],
)
def test_a_meeting_is_when_the_clocks_on_the_wall_say(
    day: str, start: str, end: str, zone: str, starts_at: str, ends_at: str
) -> None:
    assert meeting(day, start, end, zone)[1:] == (utc(starts_at), utc(ends_at))


def test_a_meeting_that_the_clocks_swallow_is_invalid() -> None:
    """02:30 is read as 03:30, and 03:15 is before that."""
    with pytest.raises(Refused) as refused:
        meeting("2027-03-28", "02:30", "03:15", "Europe/Berlin")

    assert fields_of(refused) == ["start_time"]


@given(
    day=st.dates(min_value=datetime(1970, 1, 1).date(), max_value=datetime(2040, 1, 1).date()),
    start=st.times(),
    end=st.times(),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kolkata"]),
)
@example(day=datetime(2011, 12, 30).date(), start=NOW.time(), end=NOW.time().replace(hour=10), zone="Pacific/Apia")
def test_a_meeting_ends_after_it_starts_and_shows_the_times_asked_for(day: Any, start: Any, end: Any, zone: str) -> None:
    assume((start.hour, start.minute) != (end.hour, end.minute))
    try:
        on, starts_at, ends_at = meeting(day.isoformat(), f"{start:%H:%M}", f"{end:%H:%M}", zone)
    except Refused as refused:
        assert refused.code == "invalid"
        assert skipped(datetime.combine(day, start.replace(second=0, microsecond=0)), zone)
        return

    assert on == day
    assert starts_at < ends_at <= starts_at + timedelta(hours=26)
    shown = starts_at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    asked = datetime.combine(day, start.replace(second=0, microsecond=0))
    assert shown == asked or skipped(asked, zone)


def skipped(wall: datetime, zone: str) -> bool:
    """Whether the clocks jump over this time."""
    at = wall.replace(tzinfo=ZoneInfo(zone))
    return at.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) != wall


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"date": "2026-02-30"}, ["date"]),
        ({"date": "20261124"}, ["date"]),
        ({"date": "2026-W48-2"}, ["date"]),
        ({"date": "0001-01-01"}, ["date"]),
        ({"date": "9999-12-31"}, ["date"]),
        ({"date": "२०२६-११-२४"}, ["date"]),
        ({"start_time": "9:00"}, ["start_time"]),
        ({"start_time": "24:00"}, ["start_time"]),
        ({"end_time": "10:30:00"}, ["end_time"]),
        ({"end_time": "09:00"}, ["end_time"]),
        ({"time_zone": "Mars/Olympus"}, ["time_zone"]),
        (
            {"date": "x", "start_time": "x", "end_time": "y", "time_zone": "z"},
            ["time_zone", "date", "start_time", "end_time"],
        ),
    ],
)
def test_all_that_is_wrong_with_a_time_is_told_at_once(changes: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        rules.create_session(a_course(), replace(to_create(), **changes), NOW)

    assert fields_of(refused) == fields


# Sessions


def test_a_session_is_in_the_time_zone_of_its_course_unless_it_names_one() -> None:
    own = rules.create_session(a_course(), to_create(time_zone="Asia/Tokyo"), NOW)
    inherited = rules.create_session(a_course(), to_create(), NOW)

    assert (own.time_zone, own.starts_at) == ("Asia/Tokyo", utc("2026-11-24T00:00"))
    assert (inherited.time_zone, inherited.starts_at) == ("Europe/Berlin", utc("2026-11-24T08:00"))


def test_the_date_is_utc_midnight_of_the_day_wherever_the_class_is() -> None:
    session = rules.create_session(a_course(), to_create(time_zone="Pacific/Auckland"), NOW)

    assert view_session(session).date == str(int(utc("2026-11-24T00:00").timestamp() * 1000))


def test_starting_and_ending_take_one_version_each_and_say_who_did_it() -> None:
    started = rules.start_session(a_session(), ADA, NOW)
    ended = rules.end_session(started, ROOT, NOW + timedelta(hours=1))

    assert (started.status, started.version) == ("active", 2)
    assert started.started == Turn(at=NOW, version=2, by="Ada", by_id="ada")
    assert (ended.status, ended.version) == ("completed", 3)
    assert ended.ended == End(at=NOW + timedelta(hours=1), version=3, by="Root", by_id="root", cause="ended")
    assert ended.started == started.started


def test_starting_again_and_ending_again_change_nothing() -> None:
    active, completed = a_session("active"), a_session("completed")

    assert rules.start_session(active, ROOT, NOW) is active
    assert rules.end_session(completed, ROOT, NOW) is completed


@pytest.mark.parametrize(
    ("status", "start", "end"),
    [
        ("scheduled", None, "session_not_active"),
        ("active", None, None),
        ("completed", "session_completed", None),
        ("cancelled", "session_cancelled", "session_cancelled"),
    ],
)
def test_what_a_session_refuses_depends_on_its_state(status: SessionStatus, start: str | None, end: str | None) -> None:
    def code(change: Any) -> str | None:
        try:
            change(a_session(status), ADA, NOW)
        except Refused as refused:
            return refused.code
        return None

    assert (code(rules.start_session), code(rules.end_session)) == (start, end)


def test_a_session_never_ends_before_it_started_though_clocks_differ() -> None:
    session = a_session("active")

    ended = rules.end_session(session, ADA, NOW - timedelta(seconds=5))

    assert ended.ended_at == session.started_at


def test_the_same_key_and_body_is_the_first_session_and_another_body_a_conflict() -> None:
    session = rules.create_session(a_course(), to_create(idempotency_key="k"), NOW)
    again = to_create(idempotency_key="k", session_id="another")

    assert rules.created_before(session, to_create(idempotency_key="k"))
    assert not rules.created_before(session, again)
    with pytest.raises(Refused) as refused:
        rules.created_before(session, replace(again, fingerprint="g"))
    assert code_of(refused) == "conflict"


@pytest.mark.parametrize(
    ("status", "role", "for_staff", "enrolled", "code", "retryable"),
    [
        ("active", "teacher", True, False, "session_not_active", True),
        ("active", "admin", True, False, "session_not_active", True),
        ("active", "service", True, False, "session_not_active", True),
        ("active", "student", True, True, "forbidden", False),
        ("active", "student", False, True, "session_not_active", True),
        ("active", "student", False, False, "not_enrolled", False),
        ("active", "teacher", False, False, "not_enrolled", False),
        ("scheduled", "student", False, True, "session_not_active", False),
        ("completed", "student", False, True, "session_completed", False),
        ("cancelled", "student", False, True, "session_cancelled", False),
        ("completed", "student", False, False, "not_enrolled", False),
        ("scheduled", "teacher", True, False, "session_not_active", False),
        (None, "admin", True, False, "session_not_found", False),
    ],
)
def test_why_there_is_no_roll_is_told_to_those_who_may_know(
    status: SessionStatus | None, role: Role, for_staff: bool, enrolled: bool, code: str, retryable: bool
) -> None:
    actor = Actor("ada" if role == "teacher" else "somebody", "Somebody", role)
    command = ExplainNoRoll(**envelope(actor), session_id="s", for_staff=for_staff)
    session = None if status is None else a_session(status)

    refused = rules.explain_no_roll(session, command, enrolled=enrolled)

    assert (refused.code, refused.retryable) == (code, retryable)


# Events and cursors


def test_a_start_told_again_has_the_same_id_time_and_number_also_when_the_session_is_over() -> None:
    roster = [Enrolled("ann", "Ann")]
    first = session_started(a_session("active"), roster)

    again = session_started(a_session("completed"), roster)

    assert again == first
    assert (first.id, first.sequence) == ("session:0123456789abcdef01234567:2", 2)


@pytest.mark.parametrize(
    ("session", "told"),
    [
        (a_session(), []),
        (a_session("active"), ["rollcall.session.started.v1"]),
        (a_session("active", roll_opened_at=NOW), []),
        (a_session("completed"), ["rollcall.session.started.v1", "rollcall.session.ended.v1"]),
        (a_session("completed", roll_opened_at=NOW), ["rollcall.session.ended.v1"]),
        (a_session("completed", roll_opened_at=NOW, roll_closed_at=NOW), []),
    ],
)
def test_a_roll_is_told_what_it_has_not_answered_the_start_before_the_end(session: Session, told: list[str]) -> None:
    assert [event.type for event in unreported(session, [])] == told


def test_an_event_tells_who_and_why() -> None:
    data: Any = session_ended(a_session("completed")).data

    assert (data.cause, data.ended_by, data.ended_by_id, data.session.status) == (
        "ended",
        "Ada",
        "ada",
        "completed",
    )


def test_a_cursor_names_the_place_after_a_session() -> None:
    session = a_session()

    assert read_session_cursor(session_cursor(session)) == (session.starts_at, session.id)
    assert read_session_cursor(None) is None


@given(st.text())
@example("0001-01-01T00:00:00+14:00_x")
@example("2026-11-24T09:00:00")
def test_a_cursor_of_somebody_elses_making_is_invalid(text: str) -> None:
    try:
        read_session_cursor(text)
    except Refused as refused:
        assert [detail["field"] for detail in refused.details] == ["cursor"]


def test_every_time_zone_of_a_campus_is_known() -> None:
    assert [zone_fault(name) for name in ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/Argentina/Ushuaia")] == [None] * 4
