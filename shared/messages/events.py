"""Events: past tense, one fact each, CloudEvents that outlive every process; which service hears of which."""

from collections.abc import Sequence
from typing import ClassVar, Final, Generic, TypeVar

from msgspec import Struct

from shared.messages.commands import ReplyTo
from shared.messages.shapes import Cause, Change, Course, Enrolled, Session, Statistics, Time

SESSION_EVENTS: Final = "session.events"
ATTENDANCE_EVENTS: Final = "attendance.events"
EVENT_QUEUES: Final[dict[str, Sequence[str]]] = {
    SESSION_EVENTS: ("rollcall.roll.opened.v1", "rollcall.roll.closed.v1"),
    ATTENDANCE_EVENTS: ("rollcall.session.*.v1", "rollcall.course.changed.v1"),
}
"""Which types (topic patterns) each service's queue of events receives."""


class EventData(Struct, frozen=True, kw_only=True):
    """The `data` of an event; `first_seq` is the first number of its commit in its source."""

    type: ClassVar[str]

    first_seq: int


class CourseChanged(EventData, frozen=True, kw_only=True):
    """A course was made or changed."""

    type: ClassVar[str] = "rollcall.course.changed.v1"

    course: Course


class SessionScheduled(EventData, frozen=True, kw_only=True):
    """A session was created."""

    type: ClassVar[str] = "rollcall.session.scheduled.v1"

    session: Session


class SessionChanged(EventData, frozen=True, kw_only=True):
    """A session that is not over was changed, or, while it is active, its course's roster (else `roster` is None).

    The roster is the whole of it as of `roster_version`, so that the newest event says all; `removed` is who has just left.
    `turn_version` is the number of the session's newest start or reopening, which the roll must have heard of before.
    """

    type: ClassVar[str] = "rollcall.session.changed.v1"

    session: Session
    roster: tuple[Enrolled, ...] | None
    roster_version: int
    turn_version: int = 0
    removed: tuple[str, ...]
    changed_by: str
    changed_by_id: str


class SessionCancelled(EventData, frozen=True, kw_only=True):
    """A session was cancelled; its roll, where it has one, closes."""

    type: ClassVar[str] = "rollcall.session.cancelled.v1"

    session: Session
    cancelled_by: str
    cancelled_by_id: str


class SessionStarted(EventData, frozen=True, kw_only=True):
    """A session was started, or with a `reason` reopened; `roster` is who is on the roll at least.

    The session's teachers are the course's as of `course_version`.
    """

    type: ClassVar[str] = "rollcall.session.started.v1"

    session: Session
    roster: tuple[Enrolled, ...]
    roster_version: int = 0
    course_version: int = 0
    started_by: str
    started_by_id: str
    reason: str | None = None


class SessionEnded(EventData, frozen=True, kw_only=True):
    """A session was ended; its roll closes."""

    type: ClassVar[str] = "rollcall.session.ended.v1"

    session: Session
    cause: Cause
    ended_by: str
    ended_by_id: str


class RollOpened(EventData, frozen=True, kw_only=True):
    """A roll was opened: everybody on the session's roster stands absent. With a `reason`, it was opened again, as it was.

    `session_version` is the number of the newest start or end of the session that the roll follows, here and in
    `RollClosed`.
    """

    type: ClassVar[str] = "rollcall.roll.opened.v1"

    session_id: str
    course_id: str
    session: Session
    statistics: Statistics
    opened_by: str
    opened_by_id: str
    opened_at: Time
    session_version: int = 0
    reason: str | None = None


class RollChanged(EventData, frozen=True, kw_only=True):
    """Records of a roll changed, in one commit: one change for each number from `first_seq` on.

    `bulk` says that they were marked together, by one command.
    """

    type: ClassVar[str] = "rollcall.roll.changed.v1"

    session_id: str
    course_id: str
    changes: tuple[Change, ...]
    statistics: Statistics
    bulk: bool = False


class RollClosed(EventData, frozen=True, kw_only=True):
    """A roll was closed."""

    type: ClassVar[str] = "rollcall.roll.closed.v1"

    session_id: str
    course_id: str
    cause: Cause
    statistics: Statistics
    ended_by: str
    ended_by_id: str
    ended_at: Time
    session_version: int = 0
    closed_before: bool = False
    """It was closed already, and has been cancelled since: a close that has been told, with another cause now."""


class RollSubmitted(EventData, frozen=True, kw_only=True):
    """A closed roll was submitted: from now on a mark is an amendment."""

    type: ClassVar[str] = "rollcall.roll.submitted.v1"

    session_id: str
    course_id: str
    statistics: Statistics
    submitted_by: str
    submitted_by_id: str
    submitted_at: Time


EVENT_TYPES: Final[dict[str, type[EventData]]] = {
    data.type: data
    for data in (
        CourseChanged,
        SessionScheduled,
        SessionChanged,
        SessionCancelled,
        SessionStarted,
        SessionEnded,
        RollOpened,
        RollChanged,
        RollClosed,
        RollSubmitted,
    )
}


D_co = TypeVar("D_co", bound=EventData, covariant=True)


class Event(Struct, Generic[D_co], frozen=True, kw_only=True):
    """One domain event of one commit. `sequence` is its last number in `source`; the id is the same in every repeat.

    `reply_to` travels beside it, not in it: whom the event's effect answers.
    """

    id: str
    source: str
    time: Time
    sequence: int
    data: D_co
    reply_to: ReplyTo | None = None

    @property
    def type(self) -> str:
        """The CloudEvents type, also the routing key."""
        return self.data.type
