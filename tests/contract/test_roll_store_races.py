"""Two replicas of attendance-service on one Postgres: whatever they do to a roll at once was done one after the other."""

import asyncio
import random
from typing import Any

from shared.errors import Refused
from shared.messages import Actor, RollChanged, Status, Submission, SubmitRoll
from tests.contract.roll_talk import (
    ADA,
    ROOT,
    Service,
    a,
    all_is_well,
    an_open_roll,
    changed,
    ended,
    record_of,
    rows,
    some_students,
    started,
    to_clear,
    to_join,
    to_mark,
    to_mark_all,
)

pytest_plugins = ("tests.contract.roll_fixtures",)

STATUSES: tuple[Status, ...] = ("absent", "present", "late", "excused")


def told(replicas: list[Service], session_id: str = "5e55") -> list[Any]:
    """What both told of a roll, in order of its numbers, repeats left out."""
    events = {e.id: e for each in replicas for e in each.events if e.source == f"/rolls/{session_id}"}
    return sorted(events.values(), key=lambda event: int(event.sequence))


async def test_hundreds_of_conflicting_marks_are_numbered_without_gaps_and_history_tells_the_roll(
    replicas: list[Service],
) -> None:
    students = some_students(20)
    await an_open_roll(replicas[0], students=students)
    chance = random.Random(5)
    batches: list[list[Any]] = []
    for number in range(60):
        by = ADA if number % 2 else ROOT
        chosen = chance.sample(students, 8)
        kind = number % 4
        if kind == 0:
            batches.append([to_mark_all(*((student, chance.choice(STATUSES)) for student in chosen), by=by)])
        elif kind == 1:
            batches.append([to_clear(student, by) for student in chosen])
        else:
            batches.append([to_mark(student, chance.choice(STATUSES), by) for student in chosen])
    batches += [[to_join(student) for student in students]] * 2

    await asyncio.gather(*(replicas[number % 2].do_all(batch) for number, batch in enumerate(batches)))

    await all_is_well(replicas[0].engine)
    events = told(replicas)
    [(seq,)] = await rows(replicas[0].engine, "SELECT seq FROM attendance.rolls")
    covered = [number for event in events for number in range(event.data.first_seq, event.sequence + 1)]
    assert covered == list(range(2, seq + 1))
    assert seq > 100
    for event in events:
        assert isinstance(event.data, RollChanged)
        assert [change.seq for change in event.data.changes] == list(range(event.data.first_seq, event.sequence + 1))


async def test_a_mark_that_reaches_both_replicas_at_once_is_done_once(replicas: list[Service]) -> None:
    """A redelivery may overlap with what it repeats."""
    students = some_students(50)
    await an_open_roll(replicas[0], students=students)
    batch = [to_mark(student, "late") for student in students]

    first, other = await asyncio.gather(*(replica.do_all(batch) for replica in replicas))

    assert first == other
    assert await rows(replicas[0].engine, "SELECT seq, late FROM attendance.rolls") == [(51, 50)]
    await all_is_well(replicas[0].engine)


async def test_of_two_teachers_who_saw_the_same_record_one_meets_a_conflict(replicas: list[Service]) -> None:
    await an_open_roll(replicas[0])
    asked = [to_mark("ann", "late", ADA, expected_seq=1), to_mark("ann", "excused", ROOT, expected_seq=1)]

    answers = await asyncio.gather(*(each.do_all([mark]) for each, mark in zip(replicas, asked, strict=True)))

    [conflict] = [answer for [answer] in answers if isinstance(answer, Refused)]
    assert conflict.code == "conflict"
    shown = conflict.details[0]["attendanceRecord"]
    record = await record_of(replicas[0], "ann")
    assert (shown["status"], shown["seq"]) == (record.status, record.seq)


async def test_a_roll_that_many_submit_at_once_is_submitted_once(replicas: list[Service]) -> None:
    await an_open_roll(replicas[0])

    answers: list[Submission] = await asyncio.gather(*(replicas[n % 2].do(a(SubmitRoll, ADA)) for n in range(10)))

    assert len({answer.seq for answer in answers}) == 1
    assert [event.type for event in told(replicas)] == ["rollcall.roll.closed.v1", "rollcall.roll.submitted.v1"]
    await all_is_well(replicas[0].engine)


async def test_joins_marks_rosters_and_turns_at_once_leave_a_roll_that_its_history_tells(replicas: list[Service]) -> None:
    students = some_students(30)
    sessions = ["r1", "r2", "r3"]
    for session in sessions:
        await an_open_roll(replicas[0], session, students[:20])
    work: list[list[Any]] = []
    for number, student in enumerate(students):
        actor = ADA if number % 2 else ROOT
        work.append([to_join(student, session) for session in sessions])
        work.append([to_mark(student, "late", actor, session_id=session) for session in sessions])
        work.append([to_clear(student, actor, session_id=session) for session in sessions])
    for session in sessions:
        work.append([changed(session, version=3, students=students[:25], roster_version=2)])
        work.append([changed(session, version=4, students=students[5:], roster_version=3)])
        work.append([a(SubmitRoll, Actor("root", "Root", "admin"), session)])
        work.append([started(session, version=6, reason="too early", students=students[5:], roster_version=3)])
        work.append([ended(session, version=5)])
    random.Random(6).shuffle(work)

    await asyncio.gather(*(replicas[number % 2].do_all(batch) for number, batch in enumerate(work)))

    for session in sessions:
        await all_is_well(replicas[0].engine, session)
        covered = [n for event in told(replicas, session) for n in range(event.data.first_seq, event.sequence + 1)]
        assert sorted({*covered, 1}) == list(range(1, len({*covered, 1}) + 1))
        assert len(set(covered)) == len(covered)
