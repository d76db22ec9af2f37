"""The rules of marks: who may, what they make of a record, what is no change, when a reason is needed, and taking back."""

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from attendance_service import rules
from attendance_service.rules import Record, Roll
from shared.messages import Actor, Mark, Status
from tests.unit.roll_makers import (
    ADA,
    ANN,
    BOB,
    NINE,
    ROBOT,
    ROOT,
    a_roll,
    an_open_roll,
    cancelled,
    closed,
    done,
    joined,
    marked,
    minutes,
    refused,
    submitted,
    to_clear,
    to_mark,
    to_mark_all,
)


def refusal(roll: Roll, record: Record | None, status: Status, by: Actor = ADA, **fields: Any) -> str:
    return refused(rules.mark, roll, record, to_mark("ann", status, by, **fields), NINE).code


# Marking


@pytest.mark.parametrize("status", get_args(Status))
@pytest.mark.parametrize(("by", "source"), [(ADA, "teacher"), (ROOT, "admin")])
def test_a_mark_says_how_a_student_stands_and_who_says_so(status: Status, by: Actor, source: str) -> None:
    roll, record = a_roll()

    command = to_mark("ann", status, by, remarks="ill", reason="letter", command_id="7")
    step = rules.mark(roll, record, command, minutes(3))

    roll, record = done(step)
    assert (record.status, record.source, record.remarks) == (status, source, "ill")
    assert (record.marked_by, record.marked_at, record.seq) == (by.id, minutes(3), 2)
    assert (roll.seq, getattr(roll, status)) == (2, 3 if status == "absent" else 1)
    entry = step.entry if not isinstance(step, Record) else None
    assert entry is not None
    assert (entry.kind, entry.before, entry.after, entry.source) == ("marked", "absent", status, source)
    assert (entry.actor, entry.actor_name, entry.at) == (by.id, by.name, minutes(3))
    assert (entry.remarks, entry.reason, entry.command_id) == ("ill", "letter", "7")


def test_only_who_teaches_the_course_and_admins_may_mark() -> None:
    roll, record = a_roll()

    for by in (BOB, ANN, ROBOT, Actor("ada", "Ada", "student"), Actor("ada", "Ada", "service")):
        assert refusal(roll, record, "present", by) == "forbidden"
        assert refused(rules.clear, roll, record, to_clear("ann", by), NINE).code == "forbidden"
        assert refused(rules.mark_all, roll, {"ann": record}, to_mark_all(("ann", "late"), by=by), NINE).code == "forbidden"


def test_who_may_not_mark_learns_nothing_of_the_roll() -> None:
    roll, _ = a_roll()

    assert refusal(cancelled(roll), None, "present", BOB) == "forbidden"


def test_who_is_not_on_the_roll_cannot_be_marked() -> None:
    roll, _ = a_roll()

    assert refusal(roll, None, "present") == "not_enrolled"
    assert refused(rules.clear, roll, None, to_clear("eve"), NINE).code == "not_enrolled"


def test_who_has_left_the_course_may_still_be_marked() -> None:
    roll, record = a_roll()

    assert marked(roll, replace(record, enrolled=False), "excused")[1].status == "excused"


def test_a_cancelled_roll_takes_no_marks() -> None:
    roll, record = marked(*a_roll(), "late")
    roll = cancelled(roll)

    assert refusal(roll, record, "present", reason="because") == "session_cancelled"
    assert refusal(roll, record, "late") == "session_cancelled"
    assert refused(rules.clear, roll, record, to_clear("ann", reason="because"), NINE).code == "session_cancelled"


def test_a_closed_roll_takes_marks() -> None:
    roll, record = a_roll()

    roll, record = marked(closed(roll), record, "excused")

    assert (record.status, roll.status, roll.excused, roll.seq) == ("excused", "closed", 1, 3)


def test_a_mark_that_is_so_already_is_no_change() -> None:
    roll, record = marked(*a_roll(), "excused", remarks="ill")

    for by in (ADA, ROOT):
        assert rules.mark(roll, record, to_mark("ann", "excused", by), minutes(9)) is record
        assert rules.mark(roll, record, to_mark("ann", "excused", by, remarks="ill"), minutes(9)) is record


def test_a_mark_that_is_so_already_is_seen_before_a_conflict_and_before_a_missing_reason() -> None:
    roll, record = marked(*a_roll(), "excused")

    assert rules.mark(submitted(roll), record, to_mark("ann", "excused", expected_seq=1), minutes(99)) is record


def test_a_teachers_mark_outranks_the_students_own_join_also_with_the_same_status() -> None:
    roll, record = joined(*a_roll(), minutes(1))

    roll, record = marked(roll, record, "present", at=minutes(2))

    assert (record.status, record.source, record.seq, roll.seq, roll.present) == ("present", "teacher", 3, 3, 1)
    assert (record.joined_at, record.joined_seq, record.joined_status) == (minutes(1), 2, "present")


def test_an_absent_student_marked_absent_is_marked() -> None:
    roll, record = marked(*a_roll(), "absent")

    assert (record.source, record.seq, roll.absent) == ("teacher", 2, 3)


def test_remarks_left_unset_stay_while_the_status_stays_and_go_with_it() -> None:
    ill = marked(*a_roll(), "excused", remarks="ill")

    assert rules.mark(*ill, to_mark("ann", "excused"), NINE) is ill[1]
    assert marked(*ill, "late")[1].remarks is None
    assert marked(*ill, "late", remarks="bus")[1].remarks == "bus"


def test_other_remarks_are_a_change_and_null_takes_them_away() -> None:
    ill = marked(*a_roll(), "excused", remarks="ill")

    other = marked(*ill, "excused", remarks="very ill")
    gone = marked(*other, "excused", remarks=None)

    assert (other[1].remarks, other[1].seq) == ("very ill", 3)
    assert (gone[1].remarks, gone[1].seq) == (None, 4)
    assert rules.mark(*gone, to_mark("ann", "excused", remarks=None), NINE) is gone[1]


def test_who_has_not_seen_the_newest_record_meets_a_conflict_that_shows_it() -> None:
    roll, record = marked(*a_roll(), "late", remarks="bus")

    conflict = refused(rules.mark, roll, record, to_mark("ann", "present", expected_seq=1), NINE)

    [detail] = conflict.details
    assert (conflict.code, detail["field"]) == ("conflict", "expected_seq")
    assert detail["attendanceRecord"]["student_name"] == "Ann"
    assert (detail["attendanceRecord"]["status"], detail["attendanceRecord"]["seq"]) == ("late", 2)


@pytest.mark.parametrize("expected", [2, 3, None])
def test_who_has_seen_the_newest_record_marks(expected: int | None) -> None:
    roll, record = marked(*a_roll(), "late")

    assert marked(roll, record, "present", expected_seq=expected)[1].status == "present"


@pytest.mark.parametrize("reason", [None, ""])
def test_an_amendment_of_a_submitted_roll_needs_a_reason(reason: str | None) -> None:
    roll, record = marked(*a_roll(), "late")
    roll = submitted(roll)

    assert refusal(roll, record, "present", reason=reason) == "reason_required"
    assert refused(rules.clear, roll, record, to_clear("ann", reason=reason), NINE).code == "reason_required"
    all_at_once = to_mark_all(("ann", "present"), reason=reason)
    assert refused(rules.mark_all, roll, {"ann": record}, all_at_once, NINE).code == "reason_required"


def test_an_amendment_says_before_after_who_when_and_why() -> None:
    roll, record = marked(*a_roll(), "late")

    step = rules.mark(submitted(roll), record, to_mark("ann", "present", ROOT, reason="a letter"), minutes(99))

    entry = step.entry if not isinstance(step, Record) else None
    assert entry is not None
    assert (entry.before, entry.after, entry.actor, entry.at, entry.reason) == (
        "late",
        "present",
        "root",
        minutes(99),
        "a letter",
    )
    assert done(step)[0].status == "submitted"


# Many at once


def test_many_marks_are_numbered_one_after_the_other() -> None:
    step, records = an_open_roll()

    steps = rules.mark_all(step.roll, records, to_mark_all(("cid", "late"), ("ann", "excused")), NINE)

    assert [(s.entry.seq, s.entry.student_id, s.entry.after) for s in steps] == [(2, "cid", "late"), (3, "ann", "excused")]
    assert (steps[-1].roll.seq, steps[-1].roll.late, steps[-1].roll.excused, steps[-1].roll.absent) == (3, 1, 1, 1)


def test_of_many_marks_those_that_are_so_already_take_no_number_and_need_no_reason() -> None:
    step, records = an_open_roll()
    roll, records["ben"] = marked(step.roll, records["ben"], "late")
    both = to_mark_all(("ben", "late"), ("cid", "late"))

    assert [s.entry.student_id for s in rules.mark_all(roll, records, both, NINE)] == ["cid"]
    assert rules.mark_all(submitted(roll), records, to_mark_all(("ben", "late")), NINE) == []


def test_one_bad_row_refuses_all_and_every_bad_row_is_named() -> None:
    step, records = an_open_roll()

    missing = to_mark_all(("ann", "late"), ("eve", "late"), ("ben", "late"), ("zoe", "late"))
    unknown = refused(rules.mark_all, step.roll, records, missing, NINE)
    twice = refused(rules.mark_all, step.roll, records, to_mark_all(("ann", "late"), ("eve", "late"), ("ann", "late")), NINE)

    assert unknown.code == "not_enrolled"
    assert [detail["field"] for detail in unknown.details] == [
        "attendanceUpdates[1].student_id",
        "attendanceUpdates[3].student_id",
    ]
    assert twice.code == "invalid"
    assert [detail["field"] for detail in twice.details] == [
        "attendanceUpdates[1].student_id",
        "attendanceUpdates[2].student_id",
    ]


def test_remarks_of_many_marks_follow_the_same_rule() -> None:
    step, records = an_open_roll()
    roll, records["ben"] = marked(step.roll, records["ben"], "late", remarks="bus")
    command = replace(
        to_mark_all(),
        marks=(
            Mark(student_id="ann", status="late", remarks="train"),
            Mark(student_id="ben", status="excused"),
            Mark(student_id="cid", status="absent", remarks=None),
        ),
    )

    steps = rules.mark_all(roll, records, command, NINE)

    assert [s.record.remarks for s in steps if s.record] == ["train", None, None]


# Taking back


def test_a_cleared_record_is_what_the_students_own_join_made_of_it() -> None:
    roll, record = joined(*a_roll(late_after_minutes=10), minutes(12))
    roll, record = marked(roll, record, "excused", remarks="ill", at=minutes(20))

    step = rules.clear(roll, record, to_clear("ann", reason="well again"), minutes(30))

    roll, record = done(step)
    assert (record.status, record.source, record.seq) == ("late", "self", 4)
    assert (record.remarks, record.marked_by, record.marked_at) == (None, None, None)
    assert (record.joined_at, record.joined_seq, record.joined_status) == (minutes(12), 2, "late")
    assert (roll.late, roll.excused) == (1, 0)
    entry = step.entry if not isinstance(step, Record) else None
    assert entry is not None
    assert (entry.kind, entry.before, entry.after, entry.reason) == ("cleared", "excused", "late", "well again")


def test_a_cleared_record_without_a_join_is_absent() -> None:
    roll, record = done(rules.clear(*marked(*a_roll(), "present"), to_clear("ann"), minutes(1)))

    assert (record.status, record.source, record.seq, roll.absent) == ("absent", "system", 3, 3)


def test_a_join_under_a_mark_comes_to_light_when_the_mark_is_cleared() -> None:
    """And it still answers its repeats as it was answered: with the mark that stood then."""
    roll, record = joined(*marked(*a_roll(), "excused"), minutes(1))
    assert (record.status, record.source) == ("excused", "teacher")

    roll, record = done(rules.clear(roll, record, to_clear("ann"), minutes(2)))

    assert (record.status, record.source, record.joined_status) == ("present", "self", "excused")
    assert (roll.present, roll.excused) == (1, 0)


def test_where_there_is_no_mark_there_is_nothing_to_clear() -> None:
    roll, record = a_roll()
    own = joined(roll, record, minutes(1))

    assert rules.clear(roll, record, to_clear("ann"), NINE) is record
    assert rules.clear(*own, to_clear("ann"), NINE) is own[1]
    assert rules.clear(submitted(own[0]), own[1], to_clear("ann"), NINE) is own[1]
