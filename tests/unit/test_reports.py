"""What is made of a roll or a course: a summary of who was there how often, and tables."""

from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attendance_service import rules
from gateway.reports import Summary, SummaryLine, roll_table, summary, summary_table
from shared.messages import Course, CourseSummary, Outline, Student, StudentSummary
from tests.unit.samples import AT, ROLL

COURSE = Course(
    id="c1",
    title="Algebra",
    teacher_ids=("ada",),
    time_zone="UTC",
    archived=False,
    created_at=AT,
    updated_at=AT,
)

COUNT = st.integers(0, 500)


def outline(*students: tuple[str, str], remaining: int = 0) -> Outline:
    roster = tuple(Student(student_id=student_id, name=name) for student_id, name in students)
    return Outline(course=COURSE, roster=roster, remaining_sessions=remaining)


def counts(
    student_id: str, name: str = "", *, present: int = 0, absent: int = 0, late: int = 0, excused: int = 0
) -> StudentSummary:
    return StudentSummary(
        student_id=student_id,
        student_name=name,
        present_count=present,
        absent_count=absent,
        late_count=late,
        excused_count=excused,
    )


def counted(*students: StudentSummary, taken: int = 0) -> CourseSummary:
    return CourseSummary(taken_sessions=taken, students=students)


def only_line(made: Summary) -> SummaryLine:
    [line] = made.students
    return line


def test_a_summary_names_the_course_and_counts_its_sessions() -> None:
    made = summary(outline(remaining=3), counted(taken=7))

    assert (made.course_id, made.title, made.taken_sessions, made.remaining_sessions) == ("c1", "Algebra", 7, 3)
    assert made.students == ()


def test_the_rate_counts_the_late_and_leaves_the_excused_out() -> None:
    made = summary(
        outline(("ann", "Ann"), remaining=2), counted(counts("ann", present=3, absent=2, late=1, excused=4), taken=10)
    )

    line = only_line(made)
    assert (line.present_count, line.absent_count, line.late_count, line.excused_count) == (3, 2, 1, 4)
    assert line.taken_sessions == 10
    assert line.attendance_rate == 66.67
    assert line.best_possible_rate == 75.0


def test_with_nothing_left_to_count_there_is_no_rate() -> None:
    made = summary(outline(("ann", "Ann")), counted(counts("ann", excused=2), taken=2))

    assert (only_line(made).attendance_rate, only_line(made).best_possible_rate) == (None, None)


def test_who_has_no_record_yet_stands_with_zeros() -> None:
    line = only_line(summary(outline(("ann", "Ann"), remaining=4), counted(taken=5)))

    assert (line.present_count, line.absent_count, line.late_count, line.excused_count, line.taken_sessions) == (0, 0, 0, 0, 0)
    assert (line.attendance_rate, line.best_possible_rate, line.enrolled) == (None, 100.0, True)
    assert only_line(summary(outline(("ann", "Ann")), counted(taken=5))).best_possible_rate is None


def test_who_left_the_course_is_listed_and_nothing_remains_for_them() -> None:
    line = only_line(summary(outline(remaining=9), counted(counts("bob", "Bob", present=1, absent=1), taken=2)))

    assert (line.student_id, line.student_name, line.enrolled) == ("bob", "Bob", False)
    assert (line.attendance_rate, line.best_possible_rate) == (50.0, 50.0)


def test_students_are_listed_by_name_and_then_by_id() -> None:
    made = summary(
        outline(("s3", "Bob"), ("s2", "Ann"), ("s1", "Bob")),
        counted(counts("s0", "Bea", absent=1), counts("s3", "Old", late=1)),
    )

    assert [(line.student_name, line.student_id) for line in made.students] == [
        ("Ann", "s2"),
        ("Bea", "s0"),
        ("Bob", "s1"),
        ("Bob", "s3"),
    ]


def test_the_rosters_name_goes_before_the_records_and_stands_in_for_none() -> None:
    made = summary(outline(("s1", "New"), ("s2", "")), counted(counts("s1", "Old", late=1), counts("s2", "Told", late=1)))

    assert [line.student_name for line in made.students] == ["New", "Told"]


@given(COUNT, COUNT, COUNT)
def test_a_students_rate_is_rounded_as_a_rolls_is(present: int, absent: int, late: int) -> None:
    """The same counts give the same rate in both services."""
    line = only_line(summary(outline(("ann", "Ann")), counted(counts("ann", present=present, absent=absent, late=late))))

    roll = SimpleNamespace(present=present, absent=absent, late=late, excused=0)
    assert line.attendance_rate == rules.statistics(cast(rules.Roll, roll)).attendance_rate


@pytest.mark.parametrize("remaining", [0, 1, 10])
def test_the_best_possible_rate_is_reached_by_attending_all_that_remains(remaining: int) -> None:
    now = summary(outline(("ann", "Ann"), remaining=remaining), counted(counts("ann", present=2, absent=5, excused=1)))
    then = summary(outline(("ann", "Ann")), counted(counts("ann", present=2 + remaining, absent=5, excused=1)))

    assert only_line(now).best_possible_rate == only_line(then).attendance_rate


def test_a_summary_is_a_table() -> None:
    table = summary_table(summary(outline(("ann", "Ann"), remaining=1), counted(counts("ann", present=1, absent=2))))

    assert table.columns == (
        "student_id",
        "student_name",
        "enrolled",
        "presentCount",
        "absentCount",
        "lateCount",
        "excusedCount",
        "takenSessions",
        "attendanceRate",
        "bestPossibleRate",
    )
    assert table.rows == (("ann", "Ann", True, 1, 2, 0, 0, 3, 33.33, 50.0),)


def test_a_roll_is_a_table_in_the_order_of_its_records() -> None:
    table = roll_table(ROLL)

    assert table.columns == (
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
    assert table.rows == (("ann", "Ann", "late", "=1+1", "teacher", "ada", AT, None, 7),)
