"""The rules of the roll: who may join and when, what a join and a close make of it, and that it can be replayed."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from attendance_service import events, rules
from attendance_service.rules import Record, Roll, Step
from shared.clock import rfc3339
from shared.errors import Refused
from shared.messages import Actor, CheckIn, Enrolled, RollStatus, Session, SessionEnded, Status

NINE = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
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


def an_open_roll(students: Sequence[str] = STUDENTS, at: datetime = NINE, **check_in: Any) -> tuple[Step, dict[str, Record]]:
    roster = tuple(Enrolled(student, student.title()) for student in students)
    step, records = rules.open_roll(a_session(check_in=CheckIn(**check_in)), roster, ADA, at)
    return step, {record.student_id: record for record in records}


def a_roll(**check_in: Any) -> tuple[Roll, Record]:
    """A roll that was opened at nine, and Ann's record on it."""
    step, records = an_open_roll(**check_in)
    return step.roll, records["ann"]


def join(roll: Roll, record: Record | None, at: datetime, actor: Actor = ANN) -> Step:
    step = rules.join(roll, record, actor, at, "1")
    assert isinstance(step, Step)
    return step


def joined(roll: Roll, record: Record, at: datetime) -> tuple[Roll, Record]:
    """The same after Ann's join."""
    step = join(roll, record, at)
    assert step.record is not None
    return step.roll, step.record


def ended(roll: Roll, at: datetime) -> Step:
    session = replace(roll.session, status="completed", ended_at=rfc3339(at))
    step = rules.close(roll, session, "ended", ADA, at)
    assert step is not None
    return step


def code(roll: Roll, record: Record | None, at: datetime, actor: Actor = ANN) -> str:
    with pytest.raises(Refused) as refused:
        rules.join(roll, record, actor, at, "1")
    return refused.value.code


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


# Closing


def test_a_roll_closes_once_and_keeps_the_session_as_it_ended() -> None:
    roll, _ = joined(*a_roll(), minutes(1))
    session = replace(roll.session, status="completed", ended_at=rfc3339(minutes(60)))

    step = rules.close(roll, session, "ended", ADA, minutes(60))

    assert step is not None
    assert (step.roll.status, step.roll.seq, step.roll.cause) == ("closed", 3, "ended")
    assert (step.roll.session, step.roll.present, step.record) == (session, 1, None)
    assert (step.entry.kind, step.entry.seq, step.entry.at, step.entry.actor) == ("closed", 3, minutes(60), "ada")
    assert rules.close(step.roll, session, "automatic", ADA, minutes(61)) is None


def test_a_submitted_roll_is_not_closed_again() -> None:
    roll, _ = a_roll()

    assert rules.close(replace(roll, status="submitted"), roll.session, "ended", ADA, minutes(60)) is None


def test_history_says_what_kind_of_person_acted() -> None:
    roll, _ = a_roll()
    steps = [rules.close(roll, roll.session, "ended", actor, minutes(60)) for actor in (ADA, ROOT, ROBOT)]

    assert [step and step.entry.source for step in steps] == ["teacher", "admin", "system"]


# Reading


def test_staff_may_read_a_roll_and_nobody_else() -> None:
    roll, _ = a_roll()

    for actor in (ADA, ROOT, ROBOT):
        rules.may_read(roll, actor)
    for actor in (BOB, ANN, EVE, Actor("ada", "Ada", "student")):
        with pytest.raises(Refused, match="forbidden"):
            rules.may_read(roll, actor)


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


# Whole rolls


class Story:
    """A roll, its records, and all that happened to it."""

    def __init__(self, students: Sequence[str], **check_in: Any) -> None:
        step, self.records = an_open_roll(students, **check_in)
        self.roll = step.roll
        self.steps = [step]

    def take(self, step: Step) -> None:
        self.roll = step.roll
        if step.record is not None:
            self.records[step.record.student_id] = step.record
        self.steps.append(step)

    def replayed(self) -> dict[str, Status]:
        """Everybody's status as history tells it, from "all absent" on."""
        statuses: dict[str, Status] = dict.fromkeys(self.records, "absent")
        for step in self.steps:
            if step.entry.student_id is not None:
                assert step.entry.before == statuses[step.entry.student_id]
                assert step.entry.after is not None
                statuses[step.entry.student_id] = step.entry.after
        return statuses


students = st.sampled_from([f"s{number}" for number in range(8)])
turns = st.lists(
    st.one_of(
        st.tuples(st.just("join"), students, st.integers(-5, 120)),
        st.tuples(st.sampled_from(["close", "mark"]), students, st.integers(-5, 120)),
    ),
    max_size=60,
)
limits = st.one_of(st.none(), st.integers(0, 60))


@given(turns=turns, late=limits, closes=limits, enrolled=st.sets(students))
def test_whatever_happens_numbers_have_no_gaps_counts_are_right_and_history_replays(
    turns: list[tuple[str, str, int]], late: int | None, closes: int | None, enrolled: set[str]
) -> None:
    """The marks stand in for what is to come: a join must get along with them."""
    story = Story(sorted(enrolled), late_after_minutes=late, closes_after_minutes=closes)
    first_answers: dict[str, tuple[Any, ...]] = {}
    for what, student, minute in turns:
        if what == "close":
            before = story.roll
            step = rules.close(story.roll, story.roll.session, "ended", ADA, minutes(minute))
            assert (step is None) == (before.status != "open")
            if step is not None:
                story.take(step)
        elif what == "mark" and student in enrolled:
            story.take(marked_excused(story.roll, story.records[student], minutes(minute)))
        elif what == "join":
            actor = Actor(student, student.title(), "student")
            try:
                made = rules.join(story.roll, story.records.get(student), actor, minutes(minute), "1")
            except Refused as refused:
                assert student not in first_answers
                assert refused.code in {"not_enrolled", "check_in_closed", "session_completed"}
                continue
            if isinstance(made, Step):
                story.take(made)
            record = story.records[student]
            answer = (record.joined_at, record.joined_seq, record.joined_status)
            assert first_answers.setdefault(student, answer) == answer
            assert record.joined_at is not None
            assert record.joined_at >= story.roll.opened_at

    assert [step.entry.seq for step in story.steps] == list(range(1, story.roll.seq + 1))
    assert [step.roll.seq for step in story.steps] == [step.entry.seq for step in story.steps]
    recount = Counter(record.status for record in story.records.values())
    assert {status: getattr(story.roll, status) for status in get_args(Status)} == {
        status: recount[status] for status in get_args(Status)
    }
    assert story.replayed() == {student: record.status for student, record in story.records.items()}
    last = {step.entry.student_id: step.entry.seq for step in story.steps if step.entry.student_id is not None}
    assert {student: record.seq for student, record in story.records.items()} == {
        student: last.get(student, 1) for student in story.records
    }


def marked_excused(roll: Roll, record: Record, at: datetime) -> Step:
    """What a teacher's mark will be, once there are marks."""
    moved = Counter({record.status: -1})
    moved["excused"] += 1
    after = replace(roll, seq=roll.seq + 1, **{status: getattr(roll, status) + by for status, by in moved.items()})
    entry = rules.Entry(
        session_id=roll.session_id,
        seq=after.seq,
        at=at,
        kind="marked",
        student_id=record.student_id,
        before=record.status,
        after="excused",
        source="teacher",
        actor="ada",
        actor_name="Ada",
    )
    return Step(after, entry, replace(record, status="excused", source="teacher", seq=after.seq))


# Events


def test_joins_of_several_rolls_are_one_event_for_each_roll_in_order() -> None:
    """The event carries each change with the name and the first join, and the roll's numbers after the last of them."""
    here, there = Story(STUDENTS), Story(STUDENTS)
    elsewhere = replace(there.roll.session, id="ffff")
    there.roll = replace(there.roll, session=elsewhere)
    steps = []
    for student, story in (("ann", here), ("ann", there), ("ben", here)):
        record = replace(story.records[student], session_id=story.roll.session_id)
        story.take(join(story.roll, record, minutes(1), Actor(student, student.title(), "student")))
        steps.append(story.steps[-1])

    first, second = events.changed(steps)

    assert (first.id, first.source, first.data.first_seq, first.sequence) == ("roll:5e55:3", "/rolls/5e55", 2, 3)
    assert (second.id, second.source, second.data.first_seq, second.sequence) == ("roll:ffff:2", "/rolls/ffff", 2, 2)
    assert [(c.seq, c.student_id, c.student_name, c.joined_at) for c in first.data.changes] == [
        (2, "ann", "Ann", rfc3339(minutes(1))),
        (3, "ben", "Ben", rfc3339(minutes(1))),
    ]
    assert first.data.statistics == rules.statistics(here.roll)


def test_a_close_is_an_event_with_its_cause_and_the_time_the_session_ended() -> None:
    roll, _ = a_roll()
    step = ended(roll, minutes(60))
    told = SessionEnded(first_seq=3, session=step.roll.session, cause="automatic", ended_by="Ada", ended_by_id="ada")

    event = events.closed(step, told)

    assert (event.id, event.sequence, event.data.first_seq) == ("roll:5e55:2", 2, 2)
    assert (event.data.cause, event.data.ended_by, event.data.ended_by_id) == ("automatic", "Ada", "ada")
    assert event.data.ended_at == rfc3339(minutes(60))


def test_nothing_happened_is_no_event() -> None:
    assert events.changed([]) == []
