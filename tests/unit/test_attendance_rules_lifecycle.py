"""The rules of a roll's life: closed, cancelled, submitted, opened again; and how it follows its session and its roster."""

import pytest
from msgspec.structs import replace

from attendance_service import events, rules
from attendance_service.rules import Record, Roll, Step
from shared.clock import rfc3339
from shared.messages import Actor, CheckIn, RollStatus
from tests.unit.roll_makers import (
    ADA,
    ANN,
    BOB,
    NINE,
    ROBOT,
    ROOT,
    STUDENTS,
    a_roll,
    a_roster,
    a_session,
    an_open_roll,
    cancelled,
    closed,
    done,
    ended_at,
    joined,
    marked,
    minutes,
    refused,
    submitted,
    to_submit,
    turned,
)


def reopened(roll: Roll, version: int) -> Roll:
    return turned(rules.reopen(roll, version, ADA, minutes(70), "too early"))


# Closing


def test_a_roll_closes_once_and_keeps_when_the_session_ended() -> None:
    roll, _ = joined(*a_roll(), minutes(1))

    step = rules.close(roll, ended_at(minutes(60)), 3, "ended", ADA, minutes(61))

    assert isinstance(step, Step)
    assert (step.roll.status, step.roll.seq, step.roll.cause, step.roll.turn_version) == ("closed", 3, "ended", 3)
    assert (step.roll.session.status, step.roll.session.ended_at) == ("completed", rfc3339(minutes(60)))
    assert (step.roll.present, step.record) == (1, None)
    assert (step.entry.kind, step.entry.seq, step.entry.at, step.entry.actor) == ("closed", 3, minutes(61), "ada")
    assert rules.close(step.roll, ended_at(minutes(60)), 3, "ended", ADA, minutes(62)) is step.roll


def test_a_submitted_roll_is_not_closed_again_but_notes_that_it_has_heard() -> None:
    roll = submitted(a_roll()[0])

    heard = rules.close(roll, ended_at(minutes(61)), 3, "ended", ADA, minutes(61))

    assert isinstance(heard, Roll)
    assert (heard.status, heard.seq, heard.cause, heard.turn_version) == ("submitted", roll.seq, "submitted", 3)
    assert heard.session.ended_at == rfc3339(minutes(61))


def test_an_end_from_before_the_last_opening_changes_nothing() -> None:
    roll = reopened(closed(a_roll()[0]), 4)

    assert rules.close(roll, ended_at(minutes(60)), 3, "ended", ADA, minutes(80)) is roll


def test_history_says_what_kind_of_person_acted() -> None:
    roll, _ = a_roll()
    steps = [rules.close(roll, ended_at(minutes(60)), 3, "ended", actor, minutes(60)) for actor in (ADA, ROOT, ROBOT)]

    assert [step.entry.source for step in steps if isinstance(step, Step)] == ["teacher", "admin", "system"]


@pytest.mark.parametrize("status", ["open", "closed", "submitted"])
def test_a_cancelled_session_closes_its_roll_for_good_whatever_it_was(status: RollStatus) -> None:
    roll, _ = a_roll()
    roll = {"open": roll, "closed": closed(roll), "submitted": submitted(roll)}[status]

    step = rules.cancel(roll, a_session(status="cancelled"), 4, ROOT, minutes(61))

    assert isinstance(step, Step)
    assert (step.roll.status, step.roll.cause, step.roll.seq) == ("closed", "cancelled", roll.seq + 1)
    assert step.roll.session.status == "cancelled"
    assert (step.entry.kind, step.entry.source) == ("cancelled", "admin")
    assert [event.data.closed_before for event in events.told([step])] == [roll.status != "open"]
    again = rules.cancel(step.roll, a_session(status="cancelled"), 5, ROOT, minutes(62))
    assert isinstance(again, Roll)
    assert (again.seq, again.turn_version) == (step.roll.seq, 5)


# Submitting


def test_submitting_an_open_roll_closes_it_first() -> None:
    roll, _ = joined(*a_roll(), minutes(1))

    steps = rules.submit(roll, to_submit(ADA, "k"), minutes(50))

    assert [(s.entry.kind, s.entry.seq, s.roll.status) for s in steps] == [
        ("closed", 3, "closed"),
        ("submitted", 4, "submitted"),
    ]
    assert {(s.roll.cause, s.roll.session.status, s.roll.session.ended_at) for s in steps} == {
        ("submitted", "completed", rfc3339(minutes(50)))
    }
    assert {(s.entry.actor, s.entry.command_id) for s in steps} == {("ada", "k")}
    assert steps[-1].roll.turn_version == 2, "the session is still to be heard of"


def test_submitting_a_closed_roll_is_one_step_and_keeps_why_it_was_closed() -> None:
    [step] = rules.submit(closed(a_roll()[0]), to_submit(ADA, "k"), minutes(70))

    assert (step.entry.kind, step.roll.status, step.roll.cause) == ("submitted", "submitted", "ended")
    assert step.roll.session.ended_at == rfc3339(minutes(60))


def test_a_submitted_roll_is_not_submitted_again() -> None:
    assert rules.submit(submitted(a_roll()[0]), to_submit(ROOT, "k"), minutes(70)) == []


def test_only_who_may_act_submits_and_never_a_cancelled_roll() -> None:
    roll, _ = a_roll()

    for by in (BOB, ANN, ROBOT):
        for at_hand in (roll, submitted(roll), cancelled(roll)):
            assert refused(rules.submit, at_hand, to_submit(by, "k"), minutes(9)).code == "forbidden"
    assert refused(rules.submit, cancelled(roll), to_submit(ADA, "k"), minutes(9)).code == "session_cancelled"


def test_a_roll_does_not_end_before_it_was_opened_whatever_a_replicas_clock_says() -> None:
    step, _ = an_open_roll(at=minutes(1))

    assert rules.submit(step.roll, to_submit(ADA, "k"), NINE)[0].roll.session.ended_at == rfc3339(minutes(1))


# Opening again


@pytest.mark.parametrize("status", ["closed", "submitted"])
def test_a_reopened_roll_is_as_it_was_and_takes_joins_again(status: RollStatus) -> None:
    opening, records = an_open_roll(late_after_minutes=10)
    roll, records["ann"] = joined(opening.roll, records["ann"], minutes(1))
    roll = closed(roll) if status == "closed" else submitted(roll)

    step = rules.reopen(roll, 4, ROOT, minutes(70), "too early")

    assert isinstance(step, Step)
    assert (step.roll.status, step.roll.cause, step.roll.seq) == ("open", None, roll.seq + 1)
    assert (step.roll.session.status, step.roll.session.ended_at) == ("active", None)
    assert (step.roll.present, step.roll.turn_version) == (1, 4)
    assert (step.entry.kind, step.entry.reason, step.entry.source) == ("reopened", "too early", "admin")
    late = joined(step.roll, records["ben"], minutes(71))[1]
    assert (late.status, late.joined_at) == ("late", minutes(71)), "minutes count from the actual start, not from here"


def test_what_was_submitted_before_may_be_marked_without_a_reason_once_it_is_open_again() -> None:
    roll, record = a_roll()

    assert marked(reopened(submitted(roll), 4), record, "late")[1].status == "late"


def test_a_reopened_roll_may_be_submitted_anew() -> None:
    roll = reopened(submitted(a_roll()[0]), 4)

    assert [s.entry.kind for s in rules.submit(roll, to_submit(ADA, "k2"), minutes(80))] == ["closed", "submitted"]


def test_a_start_that_comes_again_changes_nothing() -> None:
    roll, _ = a_roll()
    over = closed(roll)

    assert rules.reopen(roll, 2, ADA, minutes(1), None) is roll
    assert rules.reopen(over, 2, ADA, minutes(61), None) is over


def test_a_reopening_of_a_roll_that_never_heard_of_the_end_is_only_noted() -> None:
    roll = rules.reopen(a_roll()[0], 4, ADA, minutes(1), "why not")

    assert isinstance(roll, Roll)
    assert (roll.status, roll.seq, roll.turn_version) == ("open", 1, 4)


# Following the session


def test_news_of_a_session_change_what_it_says_but_not_how_its_life_stands() -> None:
    roll = submitted(a_roll()[0])

    followed = rules.follow(roll, a_session(title="Fields", started_at=None), 3, minutes(30))

    assert (followed.session.title, followed.session_version) == ("Fields", 3)
    assert (followed.session.status, followed.session.ended_at) == ("completed", roll.session.ended_at)
    assert followed.session.started_at == roll.session.started_at
    assert rules.follow(followed, a_session(title="Rings"), 3, minutes(30)) is followed
    assert rules.follow(followed, a_session(title="Rings"), 2, minutes(30)) is followed


def test_a_changed_check_in_counts_from_the_actual_start_on_an_open_roll() -> None:
    roll, _ = a_roll(late_after_minutes=10)

    longer = rules.follow(roll, a_session(check_in=CheckIn(late_after_minutes=20, closes_after_minutes=30)), 3, minutes(30))
    never = rules.follow(roll, a_session(check_in=CheckIn(late_after_minutes=None)), 3, minutes(30))

    assert (longer.late_at, longer.closes_at) == (minutes(20), minutes(30))
    assert (never.late_at, never.closes_at) == (None, None)


def test_a_roll_that_is_closed_takes_over_the_check_in_when_it_is_opened_again() -> None:
    roll = closed(a_roll(late_after_minutes=10)[0])

    followed = rules.follow(roll, a_session(check_in=CheckIn(late_after_minutes=20)), 5, minutes(30))

    assert followed.late_at == minutes(10)
    assert reopened(followed, 4).late_at == minutes(20)


def test_a_changed_check_in_decides_anew_on_own_joins_and_leaves_marks_and_answers() -> None:
    step, records = an_open_roll(("ann", "ben", "cid", "dan", "eva"), late_after_minutes=10)
    roll = step.roll
    for student, minute in (("ann", 5), ("ben", 15), ("cid", 25), ("dan", 15)):
        roll, records[student] = joined(roll, records[student], minutes(minute))
    roll, records["dan"] = marked(roll, records["dan"], "late")
    roll = rules.follow(roll, a_session(check_in=CheckIn(late_after_minutes=20)), 3, minutes(30))

    steps = rules.redecide(roll, records.values(), ADA, minutes(30))

    [(entry, record)] = [(step.entry, step.record) for step in steps]
    assert record is not None
    assert (entry.kind, entry.student_id, entry.before, entry.after) == ("redecided", "ben", "late", "present")
    assert (record.status, record.source, record.seq, record.joined_status) == ("present", "self", 7, "late")
    assert (steps[0].roll.present, steps[0].roll.late, steps[0].roll.seq) == (2, 2, 7)
    assert rules.redecide(steps[0].roll, [record], ADA, minutes(31)) == []


# Following the roster


def follow_roster(roll: Roll, records: dict[str, Record], *students: str) -> tuple[Roll, list[Step]]:
    """What becomes of the roll and, in `records`, of those on it."""
    roll, steps, amended = rules.follow_roster(roll, records, a_roster(students), 2, ADA, minutes(5))
    for record in (*amended, *(step.record for step in steps if step.record)):
        records[record.student_id] = record
    return roll, steps


def test_who_enrols_while_the_roll_is_open_is_added_absent() -> None:
    step, records = an_open_roll()

    roll, steps = follow_roster(step.roll, records, *STUDENTS, "dan", "eva")

    assert [(s.entry.kind, s.entry.seq, s.entry.student_id, s.entry.before, s.entry.after) for s in steps] == [
        ("enrolled", 2, "dan", None, "absent"),
        ("enrolled", 3, "eva", None, "absent"),
    ]
    assert (roll.seq, roll.absent, roll.roster_version) == (3, 5, 2)
    assert (records["dan"].source, records["dan"].student_name, records["dan"].seq) == ("system", "Dan", 2)
    assert joined(roll, records["eva"], minutes(6))[1].status == "present"


def test_who_leaves_keeps_the_record_and_joins_no_more_unless_they_had() -> None:
    step, records = an_open_roll()
    roll, records["ann"] = joined(step.roll, records["ann"], minutes(1))

    roll, steps = follow_roster(roll, records, "cid")

    assert (steps, roll.seq, roll.absent, roll.present) == ([], 2, 2, 1)
    assert [records[student].enrolled for student in STUDENTS] == [False, False, True]
    assert rules.join(roll, records["ann"], ANN, minutes(9), "2") is records["ann"]
    ben = Actor("ben", "Ben", "student")
    assert refused(rules.join, roll, records["ben"], ben, minutes(9), "3").code == "not_enrolled"


def test_who_is_back_joins_again_on_the_record_they_left() -> None:
    step, records = an_open_roll()
    roll, _ = follow_roster(step.roll, records, "ann")

    roll, steps = follow_roster(roll, records, *STUDENTS)

    assert steps == []
    assert joined(roll, records["ben"], minutes(9))[1].seq == 2


def test_names_are_the_rosters_or_else_the_first_tokens() -> None:
    step, records = rules.open_roll(a_session(), a_roster(["", "ben"]), ADA, NINE, version=2, roster_version=1)
    nameless = replace(records[0], student_id="ann")

    roll, named = done(rules.join(step.roll, nameless, Actor("ann", "Ann of the token", "student"), minutes(1), "1"))
    _, other = done(rules.join(roll, records[1], Actor("ben", "Benjamin", "student"), minutes(1), "1"))

    assert (named.student_name, other.student_name) == ("Ann of the token", "Ben")
    _, _, amended = rules.follow_roster(roll, {"ann": named}, a_roster(["ann"]), 2, ADA, minutes(2))
    assert [record.student_name for record in amended] == ["Ann"]
    _, _, amended = rules.follow_roster(
        roll, {"ann": named}, [replace(a_roster([""])[0], student_id="ann")], 2, ADA, minutes(2)
    )
    assert amended == []


def test_a_roll_that_is_not_open_only_notes_the_roster() -> None:
    step, records = an_open_roll()

    roll, steps = follow_roster(closed(step.roll), dict(records), "dan")

    assert (steps, roll.seq, roll.roster_version, roll.absent) == ([], 2, 2, 3)


# What is told


def test_a_close_is_an_event_with_its_cause_and_the_time_the_session_ended() -> None:
    step = rules.close(a_roll()[0], ended_at(minutes(60)), 3, "automatic", Actor("system", "Rollcall", "service"), minutes(61))
    assert isinstance(step, Step)

    [event] = events.told([step])

    assert (event.id, event.sequence, event.data.first_seq, event.data.session_version) == ("roll:5e55:2", 2, 2, 3)
    assert (event.data.cause, event.data.ended_by, event.data.ended_by_id) == ("automatic", "Rollcall", "system")
    assert (event.data.ended_at, event.time) == (rfc3339(minutes(60)), rfc3339(minutes(61)))


def test_submitting_an_open_roll_is_two_events() -> None:
    roll, _ = joined(*a_roll(), minutes(1))

    first, second = events.told(rules.submit(roll, to_submit(ADA, "k"), minutes(50)))

    assert (first.type, first.sequence, first.data.cause, first.data.ended_at) == (
        "rollcall.roll.closed.v1",
        3,
        "submitted",
        rfc3339(minutes(50)),
    )
    assert (second.type, second.sequence, second.data.submitted_by, second.data.submitted_at) == (
        "rollcall.roll.submitted.v1",
        4,
        "Ada",
        rfc3339(minutes(50)),
    )
    assert (first.data.session_version, first.data.statistics) == (2, second.data.statistics)


def test_a_reopening_is_told_as_an_opening_with_its_reason_and_a_cancelling_as_a_close() -> None:
    roll = closed(a_roll()[0])
    again = rules.reopen(roll, 4, ADA, minutes(70), "too early")
    gone = rules.cancel(roll, a_session(status="cancelled"), 4, ROOT, minutes(70))
    assert isinstance(again, Step)
    assert isinstance(gone, Step)

    [opened], [cancelling] = events.told([again]), events.told([gone])

    assert (opened.type, opened.data.reason, opened.data.opened_by) == ("rollcall.roll.opened.v1", "too early", "Ada")
    assert (opened.data.session.status, opened.data.session_version) == ("active", 4)
    assert (cancelling.type, cancelling.data.cause, cancelling.data.ended_by) == (
        "rollcall.roll.closed.v1",
        "cancelled",
        "Root",
    )
    assert events.told([an_open_roll()[0]])[0].data.reason is None


def test_records_that_change_around_a_turn_are_told_before_and_after_it() -> None:
    step, records = an_open_roll(late_after_minutes=10)
    roll, records["ann"] = joined(step.roll, records["ann"], minutes(15))
    roll = rules.follow(roll, a_session(check_in=CheckIn(late_after_minutes=20)), 3, minutes(30))
    steps = rules.redecide(roll, records.values(), ADA, minutes(60))
    close = rules.close(steps[-1].roll, ended_at(minutes(60)), 4, "ended", ADA, minutes(60))
    assert isinstance(close, Step)
    again = rules.reopen(close.roll, 5, ADA, minutes(70), "too early")
    assert isinstance(again, Step)
    _, added, _ = rules.follow_roster(again.roll, records, a_roster([*STUDENTS, "dan"]), 2, ADA, minutes(70))

    told = events.told([*steps, close, again, *added])

    assert [(event.type.split(".")[2], event.data.first_seq, event.sequence) for event in told] == [
        ("changed", 3, 3),
        ("closed", 4, 4),
        ("opened", 5, 5),
        ("changed", 6, 6),
    ]
