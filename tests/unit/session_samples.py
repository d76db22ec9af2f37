"""A course, a session in each state, and commands about them, for the suites of session-service's rules."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from session_service import rules
from session_service.rules import Course, Session
from shared.errors import Refused
from shared.messages import (
    Actor,
    ChangeSession,
    CheckIn,
    CreateSession,
    PutCourse,
    SessionStatus,
    Statistics,
)

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ADA = Actor("ada", "Ada", "teacher")
BOB = Actor("bob", "Bob", "teacher")
ANN = Actor("ann", "Ann", "student")
ROOT = Actor("root", "Root", "admin")
ROBOT = Actor("robot", "Robot", "service")
NOBODY = Statistics(total_students=0, present_count=0, absent_count=0, late_count=0, excused_count=0, attendance_rate=None)


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
    """A session of that course, as far as its status says; a cancelled one never began."""
    session = rules.create_session(a_course(), to_create(), NOW)
    if status in ("active", "completed"):
        session = rules.start_session(session, ADA, NOW + timedelta(minutes=1))
    if status == "completed":
        session = rules.end_session(session, ADA, NOW + timedelta(minutes=60))
    if status == "cancelled":
        session = rules.cancel_session(session, ADA, NOW + timedelta(minutes=1))
    return replace(session, **changes)


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


def to_change(actor: Actor = ADA, **changes: Any) -> ChangeSession:
    """A command to change that session."""
    return ChangeSession(**envelope(actor), session_id="0123456789abcdef01234567", **changes)


def refusal(doing: Callable[[], object]) -> str | None:
    """Do something; return the code it is refused with, None when it is not."""
    try:
        doing()
    except Refused as refused:
        return refused.code
    return None


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def code_of(refused: pytest.ExceptionInfo[Refused]) -> str:
    return refused.value.code


def fields_of(refused: pytest.ExceptionInfo[Refused]) -> list[str]:
    assert refused.value.code == "invalid"
    return [detail["field"] for detail in refused.value.details]
