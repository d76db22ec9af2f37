"""Rolls, records, commands and people for the tests of attendance-service's rules."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from attendance_service import rules
from attendance_service.rules import Record, Roll, Step
from shared.clock import rfc3339
from shared.errors import Refused
from shared.messages import Actor, CheckIn, ClearMark, Enrolled, Mark, MarkRecord, MarkRecords, Session, Status, SubmitRoll

NINE = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
TEN = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
ADA = Actor("ada", "Ada", "teacher")
BOB = Actor("bob", "Bob", "teacher")
ANN = Actor("ann", "Ann", "student")
EVE = Actor("eve", "Eve", "student")
ROOT = Actor("root", "Root", "admin")
ROBOT = Actor("robot", "Robot", "service")
STUDENTS = ("ann", "ben", "cid")


def minutes(count: float) -> datetime:
    """The time, so many minutes after the start."""
    return NINE + timedelta(minutes=count)


def a_session(**changes: Any) -> Session:
    """An active session of Ada's that started at nine."""
    session = Session(
        id="5e55",
        course_id="c1",
        title="Rings",
        topic="Rings",
        description=None,
        status="active",
        date="1795478400000",
        start_time="09:00",
        end_time="10:30",
        time_zone="UTC",
        starts_at=rfc3339(NINE),
        ends_at=rfc3339(minutes(90)),
        meeting_link=None,
        teacher_ids=("ada",),
        check_in=CheckIn(),
        started_at=rfc3339(NINE),
        ended_at=None,
        created_at=rfc3339(NINE),
        updated_at=rfc3339(NINE),
    )
    return replace(session, **changes)


def a_roster(students: Sequence[str]) -> tuple[Enrolled, ...]:
    return tuple(Enrolled(student, student.title()) for student in students)


def an_open_roll(students: Sequence[str] = STUDENTS, at: datetime = NINE, **check_in: Any) -> tuple[Step, dict[str, Record]]:
    session = a_session(check_in=CheckIn(**check_in))
    step, records = rules.open_roll(session, a_roster(students), ADA, at, version=2, roster_version=1)
    return step, {record.student_id: record for record in records}


def a_roll(**check_in: Any) -> tuple[Roll, Record]:
    """A roll that was opened at nine, and Ann's record on it."""
    step, records = an_open_roll(**check_in)
    return step.roll, records["ann"]


def done(made: object) -> tuple[Roll, Record]:
    """What a step that changes a record leaves."""
    assert isinstance(made, Step), made
    assert made.record is not None
    return made.roll, made.record


def turned(made: object) -> Roll:
    """What a step that changes the roll itself leaves."""
    assert isinstance(made, Step), made
    assert made.record is None
    return made.roll


def ended_at(at: datetime) -> Session:
    return a_session(status="completed", ended_at=rfc3339(at))


def closed(roll: Roll, at: datetime = TEN, version: int = 3) -> Roll:
    return turned(rules.close(roll, ended_at(at), version, "ended", ADA, at))


def submitted(roll: Roll, at: datetime = TEN) -> Roll:
    return rules.submit(roll, to_submit(), at)[-1].roll


def cancelled(roll: Roll, at: datetime = TEN, version: int = 3) -> Roll:
    return turned(rules.cancel(roll, a_session(status="cancelled"), version, ROOT, at))


def joined(roll: Roll, record: Record, at: datetime) -> tuple[Roll, Record]:
    """The same after the student's join."""
    return done(rules.join(roll, record, Actor(record.student_id, record.student_id.title(), "student"), at, "1"))


def _envelope(by: Actor, fields: dict[str, Any]) -> dict[str, Any]:
    plain = {"command_id": "m", "actor": by, "received_at": NINE, "deadline": minutes(999), "session_id": "5e55"}
    return {**plain, **fields}


def to_mark(student_id: str, status: Status, by: Actor = ADA, **fields: Any) -> MarkRecord:
    """A mark; `remarks` go to the mark, other fields to the command."""
    said = {"remarks": fields.pop("remarks")} if "remarks" in fields else {}
    return MarkRecord(mark=Mark(student_id=student_id, status=status, **said), **_envelope(by, fields))


def to_mark_all(*marks: tuple[str, Status], by: Actor = ADA, **fields: Any) -> MarkRecords:
    rows = tuple(Mark(student_id=student_id, status=status) for student_id, status in marks)
    return MarkRecords(marks=rows, **_envelope(by, fields))


def to_submit(by: Actor = ADA, command_id: str = "s", **fields: Any) -> SubmitRoll:
    return SubmitRoll(**_envelope(by, {"command_id": command_id, **fields}))


def to_clear(student_id: str, by: Actor = ADA, **fields: Any) -> ClearMark:
    return ClearMark(student_id=student_id, **_envelope(by, fields))


def marked(
    roll: Roll, record: Record, status: Status, by: Actor = ADA, at: datetime = NINE, **fields: Any
) -> tuple[Roll, Record]:
    """The same after a mark."""
    return done(rules.mark(roll, record, to_mark(record.student_id, status, by, **fields), at))


def refused(decide: Any, *args: Any, **kwargs: Any) -> Refused:
    """The refusal that a rule raises."""
    with pytest.raises(Refused) as caught:
        decide(*args, **kwargs)
    return caught.value
