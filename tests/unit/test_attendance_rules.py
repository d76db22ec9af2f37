"""The rules of the roll: how it opens, who may join and when, who may see what, and its numbers."""

from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from functools import partial
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from attendance_service import events, rules
from attendance_service.rules import Record, Roll, Step
from shared.clock import UNSEEN, rfc3339
from shared.messages import Actor, CheckIn, RollStatus, Status
from tests.unit.roll_makers import (
    ADA,
    ANN,
    BOB,
    EVE,
    NINE,
    ROBOT,
    ROOT,
    a_roll,
    a_session,
    an_open_roll,
    closed,
    done,
    joined,
    minutes,
    refused,
    to_mark,
    to_mark_all,
)


def join(roll: Roll, record: Record | None, at: Any, actor: Actor = ANN) -> Step:
    step = rules.join(roll, record, actor, at, "1")
    assert isinstance(step, Step)
    return step


def code(roll: Roll, record: Record | None, at: Any, actor: Actor = ANN) -> str:
    return refused(rules.join, roll, record, actor, at, "1").code


# Opening


def test_a_roll_opens_with_everybody_absent_and_takes_number_one() -> None:
    step, records = an_open_roll()

    assert (step.roll.status, step.roll.seq, step.roll.absent) == ("open", 1, 3)
    assert (step.entry.kind, step.entry.seq, step.entry.student_id, step.entry.actor) == ("opened", 1, None, "ada")
    assert {(r.status, r.source, r.seq, r.joined_at) for r in records.values()} == {("absent", "system", 1, None)}
    assert step.record is None


def test_minutes_of_the_check_in_count_from_the_actual_start_not_from_the_opening() -> None:
    step, _ = an_open_roll(at=minutes(3), late_after_minutes=10, closes_after_minutes=30)

    assert (step.roll.opened_at, step.roll.late_at, step.roll.closes_at) == (minutes(3), minutes(10), minutes(30))


def test_a_roll_may_open_with_nobody_on_it() -> None:
    step, records = an_open_roll(students=())

    assert records == {}
    assert rules.statistics(step.roll).attendance_rate is None


# Joining


def test_a_first_join_makes_an_absent_student_present() -> None:
    roll, record = a_roll()

    step = join(roll, record, minutes(1))

    assert step.record is not None
    assert (step.record.status, step.record.source, step.record.seq) == ("present", "self", 2)
    assert (step.record.joined_at, step.record.joined_seq, step.record.joined_status) == (minutes(1), 2, "present")
    assert (step.roll.seq, step.roll.absent, step.roll.present) == (2, 2, 1)
    entry = step.entry
    assert (entry.kind, entry.seq, entry.before, entry.after, entry.source) == ("joined", 2, "absent", "present", "self")
    assert (entry.student_id, entry.actor, entry.actor_name, entry.command_id) == ("ann", "ann", "Ann", "1")


def test_a_repeated_join_keeps_the_first_time_and_the_first_answer() -> None:
    roll, record = joined(*a_roll(), minutes(1))

    assert rules.join(roll, record, ANN, minutes(20), "2") is record


@pytest.mark.parametrize("status", ["closed", "submitted"])
def test_a_repeated_join_is_answered_as_the_first_also_after_the_roll_has_closed(status: RollStatus) -> None:
    roll, record = joined(*a_roll(), minutes(1))

    assert rules.join(replace(roll, status=status), record, ANN, minutes(99), "2") is record


def test_a_repeated_join_is_answered_as_the_first_also_after_a_later_mark() -> None:
    roll, record = joined(*a_roll(), minutes(1))
    marked = replace(record, status="absent", source="teacher", seq=3)

    again = rules.join(replace(roll, seq=3), marked, ANN, minutes(2), "2")

    assert isinstance(again, Record)
    assert (again.joined_at, again.joined_seq, again.joined_status) == (minutes(1), 2, "present")
    assert again.status == "absent"


@pytest.mark.parametrize(
    ("after", "status"),
    [(9.999, "present"), (10, "late"), (10.001, "late"), (89, "late")],
)
def test_late_begins_at_the_minute_named(after: float, status: Status) -> None:
    roll, record = a_roll(late_after_minutes=10)

    assert joined(roll, record, minutes(after))[1].status == status


def test_without_a_limit_nobody_is_late() -> None:
    roll, record = a_roll(late_after_minutes=None)

    assert joined(roll, record, minutes(600))[1].status == "present"


def test_with_a_limit_of_nought_everybody_is_late() -> None:
    roll, record = a_roll(late_after_minutes=0)

    assert joined(roll, record, minutes(-1))[1].status == "late"


def test_check_in_closes_at_the_minute_named() -> None:
    roll, record = a_roll(closes_after_minutes=15)

    assert joined(roll, record, minutes(14.999))[1].status == "late"
    assert code(roll, record, minutes(15)) == "check_in_closed"
    assert code(roll, record, minutes(16)) == "check_in_closed"


def test_a_repeated_join_is_answered_also_after_check_in_has_closed() -> None:
    roll, record = joined(*a_roll(closes_after_minutes=15), minutes(1))

    assert rules.join(roll, record, ANN, minutes(16), "2") is record


def test_nobody_joins_before_the_opening() -> None:
    """A join may reach a gateway before the roll is open, and be decided after."""
    step, records = an_open_roll(at=minutes(3))

    roll, record = joined(step.roll, records["ann"], minutes(2))

    assert record.joined_at == minutes(3)
    assert join(roll, records["ben"], minutes(2), Actor("ben", "Ben", "student")).entry.at == minutes(3)


def test_a_join_that_comes_once_more_and_may_have_been_refused_before_the_opening_is_none() -> None:
    step, records = an_open_roll(at=minutes(3))
    once_more = partial(rules.join, redelivered=True)

    assert refused(once_more, step.roll, records["ann"], ANN, minutes(2.999), "1").code == "timeout"
    assert done(once_more(step.roll, records["ann"], ANN, minutes(3), "1"))[1].joined_at == minutes(3)


def test_a_join_that_comes_once_more_and_may_have_been_refused_before_the_reopening_was_seen_is_none() -> None:
    """Found by chaos, where the reopening's commit waited for a Postgres that was being restarted."""
    step, records = an_open_roll()
    again = rules.reopen(closed(step.roll, version=3), 4, ADA, minutes(3), "too early")
    assert isinstance(again, Step)
    once_more, seen = partial(rules.join, redelivered=True), minutes(3) + UNSEEN

    assert refused(once_more, again.roll, records["ann"], ANN, seen - timedelta(milliseconds=1), "1").code == "timeout"
    assert done(once_more(again.roll, records["ann"], ANN, seen, "1"))[1].joined_at == seen
    assert done(rules.join(again.roll, records["ann"], ANN, minutes(3), "1"))[1].joined_at == minutes(3)


def test_a_roll_is_renewed_when_check_in_closes_later_and_never_back() -> None:
    roll, _ = a_roll(closes_after_minutes=10)

    sooner = rules.follow(roll, a_session(check_in=CheckIn(closes_after_minutes=5)), 3, minutes(1))
    never = rules.follow(sooner, a_session(check_in=CheckIn()), 4, minutes(2))
    again = rules.reopen(closed(never, version=5), 6, ADA, minutes(1), "a clock that is behind")

    assert isinstance(again, Step)
    assert [each.renewed_at for each in (sooner, never, again.roll)] == [NINE, minutes(2), minutes(2)]


@pytest.mark.parametrize("source", ["teacher", "admin"])
@pytest.mark.parametrize("status", get_args(Status))
def test_a_join_never_overwrites_a_mark_and_sets_the_time_under_it(source: Any, status: Status) -> None:
    roll, record = a_roll()
    marked = replace(record, status=status, source=source, marked_by="Ada", marked_at=minutes(1), remarks="ill", seq=2)
    counts = {"absent": 2, status: 1} if status != "absent" else {"absent": 3}
    roll = replace(roll, seq=2, **counts)

    step = join(roll, marked, minutes(2))

    after = step.record
    assert after is not None
    assert (after.status, after.source, after.marked_by, after.remarks) == (status, source, "Ada", "ill")
    assert (after.joined_at, after.joined_seq, after.joined_status) == (minutes(2), 3, status)
    assert (step.entry.before, step.entry.after) == (status, status)
    assert step.roll == replace(roll, seq=3)


def test_who_is_not_on_the_roll_is_not_enrolled() -> None:
    roll, _ = a_roll()

    for actor in (EVE, ADA, ROOT):
        assert code(roll, None, minutes(1), actor) == "not_enrolled"


def test_enrolment_decides_not_the_role() -> None:
    step, records = an_open_roll(students=("ada",))

    assert join(step.roll, records["ada"], minutes(1), ADA).entry.after == "present"


def test_a_service_changes_nothing() -> None:
    roll, record = a_roll()

    assert code(roll, record, minutes(1), ROBOT) == code(roll, None, minutes(1), ROBOT) == "forbidden"


@pytest.mark.parametrize(
    ("status", "cause", "expected"),
    [
        ("closed", "ended", "session_completed"),
        ("closed", "automatic", "session_completed"),
        ("closed", "cancelled", "session_cancelled"),
        ("submitted", "submitted", "roll_submitted"),
    ],
)
def test_a_first_join_after_the_close_is_told_why_not(status: RollStatus, cause: Any, expected: str) -> None:
    roll, record = a_roll()

    assert code(replace(roll, status=status, cause=cause), record, minutes(1)) == expected


# Reading


def test_staff_may_read_a_roll_and_nobody_else() -> None:
    roll, _ = a_roll()

    for actor in (ADA, ROOT, ROBOT):
        rules.may_read(roll, actor)
    for actor in (BOB, ANN, EVE, Actor("ada", "Ada", "student")):
        assert refused(rules.may_read, roll, actor).code == "forbidden"


def test_the_rate_has_two_decimals() -> None:
    roll, _ = a_roll()

    assert rules.statistics(replace(roll, absent=2, present=1)).attendance_rate == 33.33
    assert rules.statistics(replace(roll, absent=1, present=1, late=1)).attendance_rate == 66.67
    assert rules.statistics(replace(roll, absent=0, present=3)).attendance_rate == 100.0
    assert rules.statistics(roll).attendance_rate == 0.0


def test_the_excused_leave_the_denominator() -> None:
    roll, _ = a_roll()

    statistics = rules.statistics(replace(roll, absent=1, present=1, excused=2))

    assert (statistics.attendance_rate, statistics.total_students, statistics.excused_count) == (50.0, 4, 2)


def test_with_nobody_left_to_count_there_is_no_rate() -> None:
    roll, _ = a_roll()

    assert rules.statistics(replace(roll, absent=0, excused=3)).attendance_rate is None


counts = st.integers(0, 10_000)


@given(absent=counts, present=counts, late=counts, excused=counts)
def test_the_rate_is_what_the_contract_says(absent: int, present: int, late: int, excused: int) -> None:
    roll, _ = a_roll()

    statistics = rules.statistics(replace(roll, absent=absent, present=present, late=late, excused=excused))

    assert statistics.total_students == absent + present + late + excused
    if counted := absent + present + late:
        exact = Decimal(100 * (present + late)) / counted
        assert statistics.attendance_rate is not None
        assert 0 <= statistics.attendance_rate <= 100
        written = Decimal(repr(statistics.attendance_rate))
        assert written == exact.quantize(Decimal("0.01"), ROUND_HALF_EVEN) or abs(written - exact) == Decimal("0.005")
    else:
        assert statistics.attendance_rate is None


# Seeing


def test_staff_see_a_whole_roll_students_their_own_record_and_nobody_else_anything() -> None:
    roll, record = a_roll()

    assert [rules.sees_all(roll, None, actor) for actor in (ADA, ROOT, ROBOT)] == [True] * 3
    assert rules.sees_all(roll, replace(record, student_id="ada"), ADA)
    assert not rules.sees_all(roll, record, ANN)
    assert not rules.sees_all(roll, replace(record, student_id="bob"), BOB), "enrolment decides, not the role"
    assert refused(rules.sees_all, roll, None, EVE).code == "not_enrolled"
    assert refused(rules.sees_all, roll, replace(record, enrolled=False), ANN).code == "not_enrolled"
    assert refused(rules.sees_all, roll, None, BOB).code == "forbidden"


def test_of_courses_only_admins_and_services_are_told() -> None:
    for actor in (ROOT, ROBOT):
        rules.may_read_courses(actor)
    for actor in (ADA, ANN):
        assert refused(rules.may_read_courses, actor).code == "forbidden"


def test_a_first_join_is_shown_on_a_line_of_history_from_its_own_number_on() -> None:
    roll, record = a_roll()
    first = rules.mark(roll, record, to_mark("ann", "late"), NINE)
    assert isinstance(first, Step)
    assert first.record is not None
    second = join(first.roll, first.record, minutes(1))

    lines = [rules.change(entry, "Ann", minutes(1), 3) for entry in (first.entry, second.entry)]

    assert [line.joined_at for line in lines] == [None, rfc3339(minutes(1))]


# Events


def test_joins_of_several_rolls_are_one_event_for_each_roll_in_order() -> None:
    """The event carries each change with the name and the first join, and the roll's numbers after the last of them."""
    (here, records), (there, _) = an_open_roll(), an_open_roll()
    heads = {"5e55": here.roll, "ffff": replace(there.roll, session=a_session(id="ffff"))}
    steps = []
    for student, session in (("ann", "5e55"), ("ann", "ffff"), ("ben", "5e55")):
        record = replace(records[student], session_id=session)
        steps.append(join(heads[session], record, minutes(1), Actor(student, student.title(), "student")))
        heads[session] = steps[-1].roll

    first, second = events.told(steps)

    assert (first.id, first.source, first.data.first_seq, first.sequence) == ("roll:5e55:3", "/rolls/5e55", 2, 3)
    assert (second.id, second.source, second.data.first_seq, second.sequence) == ("roll:ffff:2", "/rolls/ffff", 2, 2)
    assert [(c.seq, c.student_id, c.student_name, c.joined_at) for c in first.data.changes] == [
        (2, "ann", "Ann", rfc3339(minutes(1))),
        (3, "ben", "Ben", rfc3339(minutes(1))),
    ]
    assert first.data.statistics == rules.statistics(heads["5e55"])
    assert not first.data.bulk


def test_marks_of_one_command_are_told_as_such() -> None:
    step, records = an_open_roll()

    [event] = events.told(rules.mark_all(step.roll, records, to_mark_all(("ann", "late"), ("cid", "late")), NINE), bulk=True)

    assert (event.data.bulk, event.data.first_seq, event.sequence) == (True, 2, 3)


def test_nothing_happened_is_no_event() -> None:
    assert events.told([]) == []
