"""What is made of a roll or of a whole course for those who read and file it: a course's summary, and tables. Pure."""

from typing import Final

from msgspec import Struct, field

from gateway.spreadsheets import Table
from shared.messages import CourseSummary, Outline, RollRead, StudentSummary

_ROLL_COLUMNS: Final = (
    "student_id",
    "student_name",
    "status",
    "remarks",
    "source",
    "marked_by",
    "marked_at",
    "joined_at",
    "seq",
)


class SummaryLine(Struct, frozen=True, kw_only=True, rename="camel"):
    """One student's attendance of a course. A rate is a percentage, null while there is nothing to count.

    `bestPossibleRate` is what it becomes when the student attends every session that remains.
    """

    student_id: str = field(name="student_id")
    student_name: str = field(name="student_name")
    enrolled: bool
    present_count: int
    absent_count: int
    late_count: int
    excused_count: int
    taken_sessions: int
    attendance_rate: float | None
    best_possible_rate: float | None


class Summary(Struct, frozen=True, kw_only=True):
    """A course's attendance: everybody enrolled, and everybody who left with records, by name."""

    course_id: str
    title: str
    taken_sessions: int
    remaining_sessions: int
    students: tuple[SummaryLine, ...]


def summary(outline: Outline, counted: CourseSummary) -> Summary:
    """Put a course's roster, the counts of its taken rolls and the sessions that remain together."""
    counts = {student.student_id: student for student in counted.students}
    lines = [
        _line(counts.pop(student.student_id, None), student.student_id, student.name, outline.remaining_sessions)
        for student in outline.roster
    ]
    lines += [_line(left, left.student_id, "", None) for left in counts.values()]
    return Summary(
        course_id=outline.course.id,
        title=outline.course.title,
        taken_sessions=counted.taken_sessions,
        remaining_sessions=outline.remaining_sessions,
        students=tuple(sorted(lines, key=lambda line: (line.student_name, line.student_id))),
    )


def summary_table(read: Summary) -> Table:
    """Lay a summary out as a table."""
    names = SummaryLine.__struct_fields__
    rows = tuple(tuple(getattr(line, name) for name in names) for line in read.students)
    return Table(title="Summary", columns=SummaryLine.__struct_encode_fields__, rows=rows)


def roll_table(read: RollRead) -> Table:
    """Lay a roll out as a table, in the order of its records."""
    rows = tuple(tuple(getattr(record, column) for column in _ROLL_COLUMNS) for record in read.records)
    return Table(title="Roll", columns=_ROLL_COLUMNS, rows=rows)


def _line(counts: StudentSummary | None, student_id: str, name: str, remaining: int | None) -> SummaryLine:
    """Make one student's line; nothing remains (None) for one who has left the course."""
    present, absent, late, excused = (
        (counts.present_count, counts.absent_count, counts.late_count, counts.excused_count) if counts else (0, 0, 0, 0)
    )
    taken, attended, ahead = present + absent + late + excused, present + late, remaining or 0
    return SummaryLine(
        student_id=student_id,
        student_name=name or (counts.student_name if counts else ""),
        enrolled=remaining is not None,
        present_count=present,
        absent_count=absent,
        late_count=late,
        excused_count=excused,
        taken_sessions=taken,
        attendance_rate=_rate(attended, taken - excused),
        best_possible_rate=_rate(attended + ahead, taken - excused + ahead),
    )


def _rate(attended: int, counted: int) -> float | None:
    """Make a percentage with two decimals, rounded as a roll's statistics are."""
    return round(100 * attended / counted, 2) if counted else None
