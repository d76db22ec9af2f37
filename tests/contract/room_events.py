"""One session's roll and its course as they are told: the events of the tests of rooms, and what a reading answers."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from shared.clock import rfc3339
from shared.messages import (
    ActiveSession,
    Change,
    ChangeKind,
    CheckIn,
    Course,
    Event,
    EventData,
    Record,
    RollChanged,
    RollClosed,
    RollOpened,
    RollRead,
    RollSubmitted,
    Session,
    Statistics,
    Status,
)

NINE = rfc3339(datetime(2026, 11, 24, 9, 0, tzinfo=UTC))
SID = "5e55"
COURSE = "c1"
STUDENTS = 400


def a_session(session_id: str = SID) -> Session:
    words: dict[str, Any] = dict.fromkeys(Session.__struct_fields__, "x")
    nothing = dict.fromkeys(("description", "meeting_link", "started_at", "ended_at"))
    return Session(
        **{
            **words,
            **nothing,
            "id": session_id,
            "course_id": COURSE,
            "status": "active",
            "teacher_ids": ("ada",),
            "check_in": CheckIn(),
        }
    )


def statistics(seq: int) -> Statistics:
    """As many are present as have joined: number 2 was the first."""
    present = min(seq - 1, STUDENTS)
    return Statistics(
        total_students=STUDENTS,
        present_count=present,
        absent_count=STUDENTS - present,
        late_count=0,
        excused_count=0,
        attendance_rate=round(100 * present / STUDENTS, 2),
    )


def whole_roll(seq: int) -> RollRead:
    records = tuple(
        Record(
            session_id=SID,
            student_id=f"s{number}",
            student_name=f"Student {number}",
            status="present",
            remarks=None,
            source="self",
            marked_by=None,
            marked_at=None,
            joined_at=NINE,
            seq=number,
        )
        for number in range(2, 6)
    )
    return RollRead(session=a_session(), records=records, statistics=statistics(seq), seq=seq)


def joins(first: int, last: int) -> Event[RollChanged]:
    """One commit of joins: student s7 joins with number 7."""
    return changed(*(a_change(seq, f"s{seq}", "joined", "present") for seq in range(first, last + 1)))


def a_change(seq: int, student_id: str, kind: ChangeKind, after: Status, *, joined: bool | None = None) -> Change:
    """One history item: a join by the student, anything else by Ada."""
    own = kind == "joined"
    return Change(
        seq=seq,
        at=NINE,
        kind=kind,
        student_id=student_id,
        before="absent",
        after=after,
        source="self" if own else "teacher",
        actor=student_id if own else "ada",
        actor_name=f"Student {student_id.removeprefix('s')}" if own else "Ada",
        reason=None,
        remarks=None,
        command_id=f"k{seq}",
        student_name=f"Student {student_id.removeprefix('s')}",
        joined_at=NINE if (own if joined is None else joined) else None,
    )


def changed(*changes: Change, bulk: bool = False) -> Event[RollChanged]:
    """One commit."""
    first, last = changes[0].seq, changes[-1].seq
    data = RollChanged(
        first_seq=first, session_id=SID, course_id=COURSE, changes=changes, statistics=statistics(last), bulk=bulk
    )
    return Event(id=f"roll:{SID}:{last}", source=f"/rolls/{SID}", time=NINE, sequence=last, data=data)


def a_mark(seq: int, student_id: str, status: Status = "excused") -> Event[RollChanged]:
    """Ada marks one student."""
    return changed(a_change(seq, student_id, "marked", status))


def is_of_joins(event: Event[EventData]) -> bool:
    """Say whether nothing else is in it."""
    return isinstance(event.data, RollChanged) and all(change.kind == "joined" for change in event.data.changes)


def a_join(seq: int) -> Event[RollChanged]:
    return joins(seq, seq)


def a_close(seq: int, session_id: str = SID, *, closed_before: bool = False) -> Event[RollClosed]:
    """The roll is closed, or, closed already, it is cancelled."""
    data = RollClosed(
        first_seq=seq,
        session_id=session_id,
        course_id=COURSE,
        cause="cancelled" if closed_before else "ended",
        statistics=statistics(seq),
        ended_by="Ada",
        ended_by_id="ada",
        ended_at=NINE,
        closed_before=closed_before,
    )
    return of_roll(data, seq)


def an_opening(seq: int, session_id: str = SID, *, reason: str | None = None) -> Event[RollOpened]:
    """The roll is opened, or with a reason opened again."""
    data = RollOpened(
        first_seq=seq,
        session_id=session_id,
        course_id=COURSE,
        session=a_session(session_id),
        statistics=statistics(seq),
        opened_by="Ada",
        opened_by_id="ada",
        opened_at=NINE,
        reason=reason,
    )
    return of_roll(data, seq)


def a_submission(seq: int) -> Event[RollSubmitted]:
    data = RollSubmitted(
        first_seq=seq,
        session_id=SID,
        course_id=COURSE,
        statistics=statistics(seq),
        submitted_by="Ada",
        submitted_by_id="ada",
        submitted_at=NINE,
    )
    return of_roll(data, seq)


def of_roll(data: Any, seq: int) -> Event[Any]:
    """Make an event of a roll with one number."""
    source = f"/rolls/{data.session_id}"
    return Event(id=f"roll:{data.session_id}:{seq}", source=source, time=NINE, sequence=seq, data=data)


def a_course(teacher_ids: tuple[str, ...]) -> Course:
    return Course(
        id=COURSE,
        title="Algorithms",
        teacher_ids=teacher_ids,
        time_zone="UTC",
        archived=False,
        created_at=NINE,
        updated_at=NINE,
    )


def active(*session_ids: str) -> tuple[ActiveSession, ...]:
    """List sessions that are on."""
    return tuple(ActiveSession(session_id=each, title="x", student_count=1, started_at=NINE) for each in session_ids)


def lines(event: Event[EventData]) -> Iterable[tuple[int, Event[EventData]]]:
    return ((seq, event) for seq in range(event.data.first_seq, event.sequence + 1))
