"""Whole rolls: whatever is done to one, in whatever order, its numbers, counts and history stay what the contract says."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from attendance_service import events, rules
from attendance_service.rules import Record, Roll, Step
from shared.errors import Refused
from shared.messages import Actor, CheckIn, RollChanged, Status
from tests.roll_replay import replayed, standing
from tests.unit.roll_makers import (
    ADA,
    ANN,
    ROOT,
    a_roster,
    a_session,
    an_open_roll,
    ended_at,
    minutes,
    to_clear,
    to_mark,
    to_mark_all,
    to_submit,
)

students = st.sampled_from([f"s{number}" for number in range(6)])
rosters = st.sets(students)
staff = st.sampled_from([ADA, ROOT])
statuses = st.sampled_from(get_args(Status))
times = st.integers(-5, 120).map(minutes)
limits = st.none() | st.integers(0, 60)
remarks = st.fixed_dictionaries({}, optional={"remarks": st.sampled_from([None, "ill", "bus"])})
reasons = st.sampled_from([None, "a letter"])


class ARoll(RuleBasedStateMachine):
    """One roll, all who are or were on it, and all that happened to it."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 2
        self.roster_version = 1
        self.first_answers: dict[str, tuple[Any, ...]] = {}

    @initialize(on_it=rosters, late=limits, closes=limits)
    def open(self, on_it: set[str], late: int | None, closes: int | None) -> None:
        step, self.records = an_open_roll(sorted(on_it), late_after_minutes=late, closes_after_minutes=closes)
        self.at_the_opening = sorted(on_it)
        self.roll = step.roll
        self.steps = [step]

    def take(self, made: Step | Record | Roll) -> bool:
        if isinstance(made, Step):
            self.roll = made.roll
            self.steps.append(made)
            if made.record is not None:
                self.records[made.record.student_id] = made.record
        elif isinstance(made, Roll):
            self.roll = made
        return isinstance(made, Step)

    def next_version(self) -> int:
        self.version += 1
        return self.version

    @rule(student=students, at=times)
    def join(self, student: str, at: Any) -> None:
        before = self.records.get(student)
        actor = Actor(student, student.title(), "student")
        try:
            made = rules.join(self.roll, before, actor, at, "j")
        except Refused as refused:
            assert student not in self.first_answers
            known = {"not_enrolled", "check_in_closed", "session_completed", "session_cancelled", "roll_submitted"}
            assert refused.code in known
            return
        assert before is not None
        self.take(made)
        record = self.records[student]
        if before.marked:
            assert (record.status, record.source, record.remarks) == (before.status, before.source, before.remarks)
        answer = (record.joined_at, record.joined_seq, record.joined_status)
        assert self.first_answers.setdefault(student, answer) == answer
        assert record.joined_at is not None
        assert record.joined_at >= self.roll.opened_at

    @rule(student=students, status=statuses, by=staff, at=times, said=remarks, reason=reasons)
    def mark(self, student: str, status: Status, by: Actor, at: Any, said: dict[str, Any], reason: str | None) -> None:
        command = to_mark(student, status, by, reason=reason, **said)
        try:
            made = rules.mark(self.roll, self.records.get(student), command, at)
        except Refused as refused:
            assert refused.code in {"not_enrolled", "session_cancelled", "reason_required"}
            return
        self.take(made)
        assert (self.records[student].status, self.records[student].marked) == (status, True)
        assert rules.mark(self.roll, self.records[student], command, at) is self.records[student], "a repeat is no change"

    @rule(marks=st.lists(st.tuples(students, statuses), max_size=6), by=staff, at=times, reason=reasons)
    def mark_all(self, marks: list[tuple[str, Status]], by: Actor, at: Any, reason: str | None) -> None:
        try:
            steps = rules.mark_all(self.roll, self.records, to_mark_all(*marks, by=by, reason=reason), at)
        except Refused as refused:
            assert refused.code in {"invalid", "not_enrolled", "session_cancelled", "reason_required"}
            return
        for step in steps:
            self.take(step)
        assert {student: self.records[student].status for student, _ in marks} == dict(marks)

    @rule(student=students, by=staff, at=times, reason=reasons)
    def clear(self, student: str, by: Actor, at: Any, reason: str | None) -> None:
        try:
            made = rules.clear(self.roll, self.records.get(student), to_clear(student, by, reason=reason), at)
        except Refused as refused:
            assert refused.code in {"not_enrolled", "session_cancelled", "reason_required"}
            return
        if self.take(made):
            record = self.records[student]
            own = rules.admit(self.roll, record.joined_at) if record.joined_at else "absent"
            assert (record.status, record.source) == (own, "self" if record.joined_at else "system")
            assert (record.remarks, record.marked_by, record.marked_at) == (None, None, None)

    @rule(at=times)
    def close(self, at: Any) -> None:
        was_open = self.roll.status == "open"
        made = rules.close(self.roll, ended_at(at), self.next_version(), "ended", ADA, at)
        assert self.take(made) == was_open
        assert self.roll.status != "open"

    @rule(by=staff, at=times)
    def submit(self, by: Actor, at: Any) -> None:
        try:
            for step in rules.submit(self.roll, to_submit(by), at):
                self.take(step)
        except Refused as refused:
            assert (refused.code, self.roll.cause) == ("session_cancelled", "cancelled")
        else:
            assert self.roll.status == "submitted"

    @rule(at=times)
    def reopen(self, at: Any) -> None:
        if self.roll.cause != "cancelled":  # a cancelled session is never reopened
            self.take(rules.reopen(self.roll, self.next_version(), ADA, at, "too early"))
            self.redecide(at)
            assert self.roll.status == "open"

    @rule(at=times, often=st.integers(1, 20))
    def cancel(self, at: Any, often: int) -> None:
        if often == 1:  # for good, and so seldom
            self.take(rules.cancel(self.roll, a_session(status="cancelled"), self.next_version(), ROOT, at))
            assert (self.roll.status, self.roll.cause) == ("closed", "cancelled")

    @rule(late=limits, closes=limits, at=times)
    def change_check_in(self, late: int | None, closes: int | None, at: Any) -> None:
        session = a_session(check_in=CheckIn(late_after_minutes=late, closes_after_minutes=closes))
        self.roll = rules.follow(self.roll, session, self.next_version(), at)
        self.redecide(at)

    def redecide(self, at: Any) -> None:
        if self.roll.status == "open":
            for step in rules.redecide(self.roll, list(self.records.values()), ADA, at):
                self.take(step)

    @rule(students=rosters, at=times)
    def change_roster(self, students: set[str], at: Any) -> None:
        self.roster_version += 1
        roster = a_roster(sorted(students))
        roll, steps, amended = rules.follow_roster(self.roll, self.records, roster, self.roster_version, ADA, at)
        self.records.update({record.student_id: record for record in amended})
        for step in steps:
            self.take(step)
        self.roll = roll
        if roll.status == "open":
            assert {student for student, record in self.records.items() if record.enrolled} == students

    @rule(stale=st.integers(0, 2), at=times)
    def hear_old_news(self, stale: int, at: Any) -> None:
        """What is not newer than what the roll has followed changes nothing."""
        version = self.roll.turn_version - stale
        assert rules.close(self.roll, ended_at(at), version, "ended", ADA, at) is self.roll
        assert rules.reopen(self.roll, version, ADA, at, "too early") is self.roll
        assert rules.cancel(self.roll, a_session(), version, ADA, at) is self.roll
        assert rules.follow(self.roll, a_session(title="old"), self.roll.session_version - stale, at) is self.roll

    @invariant()
    def numbers_have_no_gaps(self) -> None:
        assert [step.entry.seq for step in self.steps] == list(range(1, self.roll.seq + 1))
        assert all(step.roll.seq == step.entry.seq for step in self.steps)

    @invariant()
    def counts_are_what_the_records_say(self) -> None:
        recount = Counter(record.status for record in self.records.values())
        assert {status: getattr(self.roll, status) for status in get_args(Status)} == {
            status: recount[status] for status in get_args(Status)
        }

    @invariant()
    def history_replays_to_the_records(self) -> None:
        told = replayed((step.entry for step in self.steps), self.at_the_opening)
        assert told == {student: standing(record) for student, record in self.records.items()}

    @invariant()
    def events_tell_every_number_once(self) -> None:
        told = events.told(self.steps)
        assert [seq for event in told for seq in range(event.data.first_seq, event.sequence + 1)] == list(
            range(1, self.roll.seq + 1)
        )
        changes = [change for event in told if isinstance(event.data, RollChanged) for change in event.data.changes]
        assert [change.seq for change in changes] == [step.entry.seq for step in self.steps if step.record is not None]

    @invariant()
    def own_joins_stand_as_the_check_in_says_while_the_roll_is_open(self) -> None:
        if self.roll.status == "open":
            own = [record for record in self.records.values() if record.source == "self" and record.joined_at]
            assert [r.status for r in own] == [rules.admit(self.roll, r.joined_at) for r in own if r.joined_at]


ARoll.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_whatever_is_done_to_a_roll_it_stays_a_roll = ARoll.TestCase


turns = st.lists(st.sampled_from(["close", "submit", "reopen", "longer", "shorter"]), max_size=12)


@given(turns)
def test_what_was_refused_stays_undone_however_often_it_is_delivered_again(turns: list[str]) -> None:
    """Regression: a join refused at a close was counted at the reopening, for a refusal is not remembered."""
    step, records = an_open_roll(closes_after_minutes=3)
    roll, version = step.roll, 2
    asked: list[tuple[Callable[..., object], Sequence[Any]]] = []
    for minute, turn in enumerate(turns, 1):
        at = minutes(minute)
        version += 1
        match turn:
            case "close":
                made = rules.close(roll, ended_at(at), version, "ended", ADA, at)
                roll = made.roll if isinstance(made, Step) else made
            case "submit":
                roll = [roll, *(step.roll for step in rules.submit(roll, to_submit(), at))][-1]
            case "reopen":
                again = rules.reopen(roll, version, ADA, at, "too early")
                roll = again.roll if isinstance(again, Step) else again
            case _:
                check_in = CheckIn(closes_after_minutes=minute + 1 if turn == "longer" else 1)
                roll = rules.follow(roll, a_session(check_in=check_in), version, at)
        once_more = partial(rules.join, redelivered=True)
        asked.append((once_more, (records["ann"], ANN, at, "j")))
        asked.append((rules.mark, (records["ann"], to_mark("ann", "late", received_at=at, redelivered=True), at)))
        undone = []
        for decide, arguments in asked:
            try:
                decide(roll, *arguments)
            except Refused:
                undone.append((decide, arguments))
        # Those that are done leave; of the others none may ever be done.
        assert len(undone) >= len(asked) - 2 and undone[: len(asked) - 2] == asked[:-2]
        asked = undone
