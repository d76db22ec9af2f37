"""attendance-service on a real Postgres: students join, each once, by hundreds in one transaction."""

import asyncio
import random
from datetime import timedelta

import pytest
from sqlalchemy import text

from shared.clock import rfc3339
from shared.errors import NO_ROLL, Refused, Unavailable
from shared.messages import (
    Actor,
    JoinRoll,
    RollJoined,
)
from tests.contract.roll_talk import (
    NAMES,
    NINE,
    Service,
    a,
    alike,
    all_is_well,
    an_open_roll,
    ended,
    heard,
    rows,
    some_students,
    statements,
    to_join,
    value,
)

pytest_plugins = ("tests.contract.roll_fixtures",)


# Joining


async def test_a_join_is_answered_and_told(service: Service) -> None:
    await an_open_roll(service)

    joined = await service.do(to_join("ann"))

    at = rfc3339(NINE + timedelta(minutes=1))
    assert joined == RollJoined(session_id="5e55", status="present", joined_at=at, seq=2, roll_seq=2, course_id="c1")
    [event] = service.events
    assert (event.id, event.source, event.sequence, event.data.first_seq) == ("roll:5e55:2", "/rolls/5e55", 2, 2)
    [change] = event.data.changes
    assert (change.student_id, change.student_name, change.before, change.after) == ("ann", "Ann", "absent", "present")
    assert (change.kind, change.source, change.joined_at, change.at) == ("joined", "self", at, at)
    assert service.left[0].channels == (NAMES.roll_channel("5e55"),)
    await all_is_well(service.engine)


async def test_hundreds_of_joins_in_several_rolls_are_one_commit_and_one_event_for_each_roll(service: Service) -> None:
    students = some_students(120)
    sessions = ["r1", "r2", "r3", "r4"]
    for session in sessions:
        await an_open_roll(service, session, students)
    batch = [to_join(student, session) for student in students for session in sessions]
    random.Random(1).shuffle(batch)

    answers = await service.do_all(batch)

    assert [(event.data.first_seq, event.sequence) for event in service.events] == [(2, 121)] * 4
    assert sorted(event.data.session_id for event in service.events) == sessions
    for event in service.events:
        mine = [c for c in batch if c.session_id == event.data.session_id]
        assert heard([event]) == [(number, command.actor.id) for number, command in enumerate(mine, 2)]
        assert event.data.statistics.present_count == 120
    by_roll = {(answer.session_id, answer.seq) for answer in answers}
    assert by_roll == {(session, seq) for session in sessions for seq in range(2, 122)}
    assert all(answer.roll_seq == answer.seq for answer in answers)
    transactions = "SELECT count(DISTINCT CAST(xmin AS text)) FROM attendance.records"
    assert await value(service.engine, transactions) == 1
    for session in sessions:
        await all_is_well(service.engine, session)


async def test_a_repeat_and_a_refusal_in_a_batch_are_answered_in_their_places(service: Service) -> None:
    await an_open_roll(service, students=some_students(4))
    first, second, third, fourth = some_students(4)
    await service.do(to_join(first))

    answers = await service.do_all([to_join(second), to_join(first), to_join("nobody"), to_join(third), to_join(fourth)])

    assert answers.pop(2).code == "not_enrolled"
    assert [(answer.seq, answer.roll_seq) for answer in answers] == [(3, 3), (2, 3), (4, 4), (5, 5)]
    [again] = await service.do_all([to_join(first)])
    assert (again.seq, again.roll_seq) == (2, 5)


async def test_a_batch_takes_as_many_statements_as_a_single_join(service: Service) -> None:
    students = some_students(300)
    for session in ("r1", "r2", "r3"):
        await an_open_roll(service, session, students)
    await service.do(to_join(students[0], "r1"))
    counts = []
    for batch in ([(1, "r1")], [(n, session) for n in range(2, 172) for session in ("r1", "r2", "r3")]):
        with statements(service.engine) as sent:
            await service.do_all([to_join(students[number], session) for number, session in batch])
        counts.append(len(sent))

    assert counts == [1, 1]


async def test_a_redelivered_batch_changes_nothing_and_answers_alike(service: Service) -> None:
    await an_open_roll(service)
    batch = [to_join("ann"), to_join("ben"), to_join("eve")]
    first = await service.do_all(batch)
    before = await rows(service.engine, "SELECT r.*, CAST(r.xmin AS text) FROM attendance.records AS r ORDER BY student_id")
    service.left.clear()

    again = await service.do_all(batch)

    assert [alike(answer) for answer in again] == [alike(answer) for answer in first]
    assert service.left == []
    after = await rows(service.engine, "SELECT r.*, CAST(r.xmin AS text) FROM attendance.records AS r ORDER BY student_id")
    assert after == before
    await all_is_well(service.engine)


async def test_a_join_twice_in_one_batch_counts_once_and_answers_alike(service: Service) -> None:
    await an_open_roll(service)
    later = NINE + timedelta(minutes=9)

    first, other, again = await service.do_all([to_join("ann"), to_join("ben"), to_join("ann", received_at=later)])

    assert alike(first) == alike(again)
    assert (first.seq, other.seq) == (2, 3)
    assert heard(service.events) == [(2, "ann"), (3, "ben")]
    await all_is_well(service.engine)


async def test_a_refusal_in_a_batch_leaves_its_neighbours_alone(service: Service) -> None:
    await an_open_roll(service)
    await an_open_roll(service, "over")
    await service.do(ended("over"))
    late, too_late = (NINE + timedelta(minutes=minute) for minute in (5, 60))
    service.left.clear()

    answers = await service.do_all(
        [
            to_join("ann"),
            to_join("eve"),
            to_join("ann", "nowhere"),
            to_join("ann", "over"),
            a(JoinRoll, Actor("ben", "Ben", "service")),
            to_join("cid", received_at=too_late),
            to_join("ben", received_at=late),
        ]
    )

    codes = [answer.code if isinstance(answer, Refused) else answer.status for answer in answers]
    assert codes == ["present", "not_enrolled", NO_ROLL, "session_completed", "forbidden", "check_in_closed", "late"]
    assert heard(service.events) == [(2, "ann"), (3, "ben")]
    await all_is_well(service.engine)


async def test_a_batch_of_refusals_alone_writes_nothing(service: Service) -> None:
    await an_open_roll(service)

    with statements(service.engine) as sent:
        await service.do_all([to_join("eve"), to_join("ann", "nowhere")])

    assert not [statement for statement in sent if "INSERT" in statement or "UPDATE attendance" in statement]
    assert service.left == []


async def test_nobody_is_answered_when_the_commit_fails(service: Service) -> None:
    """And nothing is done, nor leaves: the redelivery does it all."""
    await an_open_roll(service)
    async with service.engine.begin() as connection:
        for statement in (
            """CREATE FUNCTION attendance.fail() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$""",
            """CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON attendance.outbox
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attendance.fail()""",
        ):
            await connection.execute(text(statement))
    batch = [to_join("ann"), to_join("ben")]

    with pytest.raises(Unavailable):
        await service.handle(batch)

    assert service.left == []
    assert await value(service.engine, "SELECT seq FROM attendance.rolls") == 1
    await all_is_well(service.engine)
    async with service.engine.begin() as connection:
        await connection.execute(text("DROP TRIGGER fail ON attendance.outbox"))
    assert [answer.seq for answer in await service.do_all(batch)] == [2, 3]


async def test_what_left_with_a_commit_is_in_the_outbox(service: Service) -> None:
    await an_open_roll(service)

    await service.do(to_join("ann"))

    row = service.left[0]
    query = "SELECT type, channels, body, reply_queue FROM attendance.outbox WHERE event_id = 'roll:5e55:2'"
    assert await rows(service.engine, query) == [(row.event.type, list(row.channels), row.event.body, None)]


async def test_replicas_that_join_the_same_rolls_at_once_number_without_gaps(replicas: list[Service]) -> None:
    students = some_students(80)
    sessions = ["r1", "r2", "r3"]
    for session in sessions:
        await an_open_roll(replicas[0], session, students)
    shuffled = random.Random(2)
    tasks = []
    for number in range(40):
        # Batches overlap: every student joins each roll twice, here and there.
        chosen = [student for index, student in enumerate(students) if index % 20 in (number % 20, (number + 1) % 20)]
        batch = [to_join(student, session) for student in chosen for session in sessions]
        shuffled.shuffle(batch)
        tasks.append(replicas[number % 2].do_all(batch))

    answers = [answer for batch in await asyncio.gather(*tasks) for answer in batch]

    events = [event for replica in replicas for event in replica.events]
    for session in sessions:
        await all_is_well(replicas[0].engine, session)
        told = sorted(heard(event for event in events if event.data.session_id == session))
        assert [seq for seq, _ in told] == list(range(2, 82))
        assert {student for _, student in told} == set(students)
        answered = {answer.seq for answer in answers if answer.session_id == session}
        assert answered == set(range(2, 82))
    for event in events:
        assert [change.seq for change in event.data.changes] == list(range(event.data.first_seq, event.sequence + 1))


async def test_joins_and_the_close_at_once_agree_on_who_was_in_time(replicas: list[Service]) -> None:
    students = some_students(60)
    await an_open_roll(replicas[0], students=students)
    joins = [replicas[n % 2].do_all([to_join(s) for s in students[n * 6 : n * 6 + 6]]) for n in range(10)]

    *batches, _, _ = await asyncio.gather(*joins, replicas[0].do(ended()), replicas[1].do(ended()))

    answers = [answer for batch in batches for answer in batch]
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert {answer.code for answer in refused} <= {"session_completed"}
    seq, present = (await rows(replicas[0].engine, "SELECT seq, present FROM attendance.rolls"))[0]
    assert present == 60 - len(refused)
    assert seq == 2 + present
    await all_is_well(replicas[0].engine)


async def test_a_lock_that_is_not_had_in_time_is_unavailable_and_nothing_is_done(service: Service) -> None:
    await an_open_roll(service)
    async with service.engine.begin() as other:
        await other.execute(text("SELECT 1 FROM attendance.rolls FOR UPDATE"))

        with pytest.raises(Unavailable):
            await service.do(to_join("ann"))

    assert (await service.do(to_join("ann"))).seq == 2


async def test_hundreds_who_join_in_one_commit_change_their_records_in_place(service: Service) -> None:
    """Updates that find room on their page stay out of the indexes, which would grow by as many entries."""
    students = some_students(500)
    await an_open_roll(service, students=students)
    sizes = "SELECT pg_relation_size('attendance.records_pkey') + pg_relation_size('attendance.records_student_id')"
    before = await value(service.engine, sizes)

    await service.do_all([to_join(student) for student in students])

    assert await value(service.engine, sizes) == before
