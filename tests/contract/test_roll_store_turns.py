"""attendance-service on a real Postgres: rolls close, open again and are cancelled with their sessions, in whatever order."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from shared.clock import rfc3339
from shared.errors import NotYet
from shared.messages import CheckIn, RollRead, SubmitRoll
from tests.contract.roll_talk import (
    ADA,
    NAMES,
    NINE,
    STUDENTS,
    Service,
    a,
    alike,
    all_is_well,
    an_open_roll,
    cancelled,
    ended,
    heard,
    lines_of,
    record_of,
    rows,
    started,
    to_clear,
    to_join,
    to_mark,
    value,
)

pytest_plugins = ("tests.contract.roll_fixtures",)


# Closing


async def test_an_end_before_the_roll_is_open_comes_too_early(service: Service) -> None:
    with pytest.raises(NotYet):
        await service.do(ended())

    await an_open_roll(service, "there")
    with pytest.raises(NotYet):
        await service.do_all([ended("there"), ended()])
    assert await value(service.engine, "SELECT status FROM attendance.rolls") == "open"


async def test_an_ended_session_closes_its_roll_and_is_answered_with_it(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    service.left.clear()
    service.now += timedelta(minutes=45)
    told = ended(cause="automatic")

    roll: RollRead = await service.do(told)

    assert (roll.session, roll.seq, roll.statistics.present_count) == (told.data.session, 3, 1)
    [event] = service.events
    assert (event.id, event.type, event.sequence, event.data.first_seq) == (
        "roll:5e55:3",
        "rollcall.roll.closed.v1",
        3,
        3,
    )
    assert (event.data.cause, event.data.ended_by, event.data.ended_at) == ("automatic", "Rollcall", told.data.session.ended_at)
    assert event.data.statistics == roll.statistics
    assert service.left[0].channels == (NAMES.roll_channel("5e55"), NAMES.course_channel("c1"))
    assert await service.code(to_join("ben")) == "session_completed"
    await all_is_well(service.engine)


async def test_a_session_that_ends_twice_closes_once_and_says_so_again_to_the_letter(service: Service) -> None:
    await an_open_roll(service)
    first = await service.do(ended())
    service.now += timedelta(minutes=5)

    again, other = await service.do_all([ended(cause="automatic"), ended()])

    assert again == other == first
    assert [row.event.body for row in service.left] == [service.left[0].event.body] * 2
    assert await value(service.engine, "SELECT count(*) FROM attendance.history WHERE kind = 'closed'") == 1


async def test_an_end_twice_in_one_batch_closes_once_and_answers_both(service: Service) -> None:
    await an_open_roll(service)

    answers = await service.do_all([ended(), ended()])

    assert answers[0] == answers[1]
    assert [event.id for event in service.events] == ["roll:5e55:2"]
    await all_is_well(service.engine)


async def test_a_student_who_joined_is_answered_alike_after_the_close(service: Service) -> None:
    await an_open_roll(service)
    first = await service.do(to_join("ann"))
    await service.do(ended())

    assert alike(await service.do(to_join("ann"))) == alike(first)
    assert await service.code(to_join("ben")) == "session_completed"


async def test_an_automatic_end_was_nobodys(service: Service) -> None:
    await an_open_roll(service)

    await service.do(ended(cause="automatic"))

    [line] = (await lines_of(service.engine))[-1:]
    assert (line.kind, line.source, line.actor, line.actor_name) == ("closed", "system", "system", "Rollcall")


async def test_an_end_after_the_submission_changes_nothing_and_reports_the_close_once_more(service: Service) -> None:
    """Submit followed by end is no error, and the saga learns that the roll has heard."""
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))
    close = service.events[0]
    service.left.clear()

    roll: RollRead = await service.do(ended(version=3))

    assert (roll.session.status, roll.seq) == ("completed", 3)
    [event] = service.events
    assert event == replace(close, data=replace(close.data, session_version=3))
    assert service.left[0].channels == ()
    assert await value(service.engine, "SELECT status FROM attendance.rolls") == "submitted"


async def test_a_session_that_ended_because_its_roll_was_submitted_needs_no_report(service: Service) -> None:
    """session-service ended it on hearing of the close; a report would go round in a circle."""
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))
    service.left.clear()

    await service.do(ended(version=3, cause="submitted"))

    assert service.left == []
    assert await value(service.engine, "SELECT ended_version FROM attendance.rolls") == 3


# Opening again


async def test_a_reopened_roll_is_told_with_its_reason_and_takes_joins_again(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    await service.do(ended())
    service.left.clear()
    service.now += timedelta(minutes=50)

    roll: RollRead = await service.do(started(version=4, reason="too early"))

    assert (roll.session, roll.seq, roll.statistics.present_count) == (started().data.session, 4, 1)
    [event] = service.events
    assert (event.id, event.type, event.data.reason) == ("roll:5e55:4", "rollcall.roll.opened.v1", "too early")
    assert (event.data.session_version, event.data.opened_at) == (4, rfc3339(service.now))
    assert service.left[0].channels == (NAMES.roll_channel("5e55"), NAMES.course_channel("c1"))
    [line] = (await lines_of(service.engine))[-1:]
    assert (line.kind, line.reason, line.actor) == ("reopened", "too early", "ada")
    assert (await service.do(to_join("ben", received_at=NINE + timedelta(minutes=51)))).status == "late"
    await all_is_well(service.engine)


async def test_a_submitted_roll_is_opened_again_too(service: Service) -> None:
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))

    await service.do(started(version=3, reason="too early"))

    assert await rows(service.engine, "SELECT status, cause, seq FROM attendance.rolls") == [("open", None, 4)]
    assert (await service.do(to_mark("ann", "late"))).seq == 5


async def test_who_enrolled_while_the_roll_was_closed_is_on_it_when_it_is_open_again(service: Service) -> None:
    await an_open_roll(service)
    await service.do(ended())
    service.left.clear()

    again = started(version=4, reason="too early", students=("ann", "cid", "dan"), roster_version=2)
    roll: RollRead = await service.do(again)

    assert [record.student_id for record in roll.records] == ["ann", "ben", "cid", "dan"]
    assert [(event.data.first_seq, event.sequence) for event in service.events] == [(3, 3), (4, 4)]
    assert heard(service.events) == [(4, "dan")]
    enrolled = [(await record_of(service, student)).enrolled for student in ("ann", "ben", "cid", "dan")]
    assert enrolled == [True, False, True, True]
    await all_is_well(service.engine)


async def test_a_reopened_roll_takes_over_the_check_in_as_it_is_now(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann", received_at=NINE + timedelta(minutes=7)))
    await service.do(ended())

    roll: RollRead = await service.do(started(version=4, reason="too early", check_in=CheckIn(late_after_minutes=30)))

    assert [record.status for record in roll.records] == ["present", "absent", "absent"]
    kinds = [line.kind for line in await lines_of(service.engine)]
    assert kinds == ["opened", "joined", "closed", "reopened", "redecided"]


# In another order, and again


async def test_however_the_turns_of_a_session_arrive_the_newest_decides(service: Service) -> None:
    """Each is answered with the roll as it is, and every repeat reports the roll's last turn."""
    await an_open_roll(service)
    turns = [ended(version=3), started(version=4, reason="too early"), ended(version=5)]
    await service.do(turns[0])
    await service.do(turns[2])
    service.left.clear()

    for late in (turns[1], turns[0], started(), turns[2]):
        roll: RollRead = await service.do(late)
        assert (roll.session.status, roll.seq) == ("completed", 2)

    assert {(event.id, event.data.session_version) for event in service.events} == {("roll:5e55:2", 5)}
    versions = "SELECT status, seq, started_version, ended_version FROM attendance.rolls"
    assert await rows(service.engine, versions) == [("closed", 2, 2, 5)]
    await all_is_well(service.engine)


async def test_a_reopening_that_overtakes_the_end_is_noted_and_the_end_ignored(service: Service) -> None:
    await an_open_roll(service)

    roll: RollRead = await service.do(started(version=4, reason="too early"))
    await service.do(ended(version=3))

    assert roll.seq == 1
    assert await value(service.engine, "SELECT status FROM attendance.rolls") == "open"
    assert [(event.id, event.data.session_version) for event in service.events] == [("roll:5e55:1", 4)] * 2


async def test_a_repeated_start_after_the_end_does_not_open_the_roll_again(service: Service) -> None:
    await an_open_roll(service)
    await service.do(ended())

    again: RollRead = await service.do(started())

    assert (again.session.status, again.seq) == ("completed", 2)


async def test_what_was_refused_at_a_close_stays_undone_when_it_comes_again_after_the_reopening(service: Service) -> None:
    """Regression, found by chaos: a worker died between the answer and the acknowledgement, and the roll was reopened."""
    await an_open_roll(service)
    await service.do(ended())
    first = service.now
    join, mark = to_join("ann", received_at=first), to_mark("ben", "late", received_at=first)
    assert await service.code(join) == "session_completed"
    service.now += timedelta(seconds=1)
    await service.do(started(version=4, reason="too early"))
    # Refused though the reopening was decided already, for nobody saw it before its commit.
    unseen = to_join("cid", received_at=service.now + timedelta(seconds=1))

    once_more = [replace(late, redelivered=True) for late in (join, mark, a(SubmitRoll, ADA, received_at=first), unseen)]
    assert [await service.code(late) for late in once_more] == ["timeout"] * 4
    assert await value(service.engine, "SELECT (status, seq, absent) = ('open', 3, 3) FROM attendance.rolls")
    # What comes for the first time may have waited behind the reopening.
    assert await service.code(join) is None
    await all_is_well(service.engine)


async def test_a_start_and_its_reopening_in_one_batch_are_followed_in_order(service: Service) -> None:
    """Whichever way round they come. The end between them is still on its way."""
    again = started(version=4, reason="too early", students=(*STUDENTS, "dan"), roster_version=2)

    answers = await service.do_all([again, started()])

    assert [(answer.seq, len(answer.records)) for answer in answers] == [(2, 4), (2, 4)]
    assert [event.id for event in service.events] == ["roll:5e55:1", "roll:5e55:2"]
    assert heard(service.events) == [(2, "dan")]
    versions = "SELECT session_version, started_version, roster_version FROM attendance.rolls"
    assert await rows(service.engine, versions) == [(4, 4, 2)]
    await all_is_well(service.engine)


async def test_many_turns_at_once_on_two_replicas_end_as_the_newest_says(replicas: list[Service]) -> None:
    sessions = [f"r{number}" for number in range(6)]
    for session in sessions:
        await an_open_roll(replicas[0], session)
    turns: list[Any] = []
    for session in sessions:
        turns += [ended(session, version=3), started(session, version=4, reason="a"), ended(session, version=5)]
        turns += [started(session, version=6, reason="b"), ended(session, version=7)]
    twice = turns * 2
    random.Random(4).shuffle(twice)

    await asyncio.gather(*(replicas[number % 2].do(turn) for number, turn in enumerate(twice)))

    assert await rows(replicas[0].engine, "SELECT DISTINCT status, ended_version FROM attendance.rolls") == [("closed", 7)]
    told = [event for replica in replicas for event in replica.events]
    for session in sessions:
        await all_is_well(replicas[0].engine, session)
        newest = [event for event in told if event.source == f"/rolls/{session}" and event.data.session_version == 7]
        assert {event.type for event in newest} == {"rollcall.roll.closed.v1"}


# Cancelling


async def test_a_cancelled_session_closes_its_roll(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    service.left.clear()

    await service.do(cancelled(version=3))

    [event] = service.events
    assert (event.type, event.sequence, event.data.cause) == ("rollcall.roll.closed.v1", 3, "cancelled")
    assert (event.data.ended_by, event.data.ended_by_id, event.data.session_version) == ("Root", "root", 3)
    assert (await lines_of(service.engine))[-1].kind == "cancelled"
    assert await service.code(to_join("ben")) == "session_cancelled"
    assert await service.code(to_mark("ann", "late")) == "session_cancelled"
    assert await service.code(to_clear("ann")) == "session_cancelled"
    assert alike(await service.do(to_join("ann"))).status == "present", "who had joined is answered as before"
    await all_is_well(service.engine)


async def test_a_cancelling_that_comes_again_closes_once_and_says_so_again(service: Service) -> None:
    await an_open_roll(service)
    await service.do(cancelled())

    await service.do_all([cancelled(), cancelled()])

    assert [event.id for event in service.events] == ["roll:5e55:2", "roll:5e55:2"]
    assert service.left[1].event.body == service.left[0].event.body


async def test_the_cancelling_of_a_session_that_was_never_started_is_no_matter(service: Service) -> None:
    """Of another it comes too early."""
    outcome = await service.handle([cancelled(started_at=None)])
    assert (outcome.answers, outcome.events) == ([], [])

    with pytest.raises(NotYet):
        await service.do(cancelled())


async def test_a_roll_that_was_submitted_meanwhile_is_cancelled_all_the_same(service: Service) -> None:
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))

    await service.do(cancelled())

    assert await rows(service.engine, "SELECT status, cause FROM attendance.rolls") == [("closed", "cancelled")]
    assert await service.code(a(SubmitRoll, ADA)) == "session_cancelled"
    await all_is_well(service.engine)
