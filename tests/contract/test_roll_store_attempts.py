"""Joins are decided without a lock, mostly on what is known: whatever happens to the roll meanwhile, nothing stale counts."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from attendance_service.store import LOCKED_BATCHES, known
from attendance_service.store.attempts import Attempt, Attempts
from shared.database import Connection
from shared.errors import NO_ROLL, Refused
from shared.messages import Enrolled, SubmitRoll
from tests.contract.roll_talk import (
    ADA,
    STUDENTS,
    Service,
    a,
    all_is_well,
    an_open_roll,
    changed,
    ended,
    heard,
    some_students,
    started,
    statements,
    to_join,
    to_mark,
    value,
)

pytest_plugins = ("tests.contract.roll_fixtures",)

Meanwhile = Callable[[], Awaitable[Any]]


def before_it_writes(monkeypatch: pytest.MonkeyPatch, meanwhile: Meanwhile) -> None:
    """Have something happen, once, after the next attempt has been decided and before it is written."""
    write, left = Attempts.write, [meanwhile]

    async def write_after(attempts: Attempts, connection: Connection, attempt: Attempt) -> dict[str, int] | None:
        if left:
            await left.pop()()
        return await write(attempts, connection, attempt)

    monkeypatch.setattr(Attempts, "write", write_after)


async def closed_and_reopened(other: Service) -> None:
    """While the clock moves: what has come only once may have waited behind that."""
    await other.do(ended())
    other.now = other.now.replace(hour=10)
    await other.do(started(version=4, reason="too early"))


@pytest.mark.parametrize(
    ("happens", "answer"),
    [
        (lambda other: other.do(ended()), "session_completed"),
        (lambda other: other.do(a(SubmitRoll, ADA)), "roll_submitted"),
        (closed_and_reopened, ("present", 4)),
        (lambda other: other.do(changed(students=("ben", "cid"), roster_version=2)), "not_enrolled"),
        (lambda other: other.do(changed(students=(*STUDENTS, "eve"), roster_version=2)), ("present", 3)),
        (lambda other: other.do(to_mark("ann", "excused")), ("excused", 3)),
        (lambda other: other.do(to_join("ann")), ("present", 2)),
        (lambda other: other.do(to_join("ben")), ("present", 3)),
    ],
    ids=["closed", "submitted", "reopened", "removed", "another enrolled", "marked", "joined elsewhere", "another joined"],
)
@pytest.mark.parametrize("well_known", [False, True], ids=["read", "known"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "between deciding and writing"])
async def test_a_join_is_decided_anew_when_its_roll_moved_on_meanwhile(
    replicas: list[Service],
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Service], Awaitable[Any]],
    answer: str | tuple[str, int],
    well_known: bool,
    late: bool,
) -> None:
    await an_open_roll(replicas[0 if well_known else 1])
    if late:
        before_it_writes(monkeypatch, lambda: happens(replicas[1]))
    else:
        await happens(replicas[1])

    [joined] = await replicas[0].do_all([to_join("ann")])

    assert (joined.code if isinstance(joined, Refused) else (joined.status, joined.seq)) == answer
    await all_is_well(replicas[0].engine)


async def statements_of(service: Service, *students: str) -> list[int]:
    """Have students join one after the other; return how many statements each takes."""
    counts = []
    for student in students:
        with statements(service.engine) as sent:
            await service.do(to_join(student))
        counts.append(len(sent))
    return counts


async def test_a_roll_that_was_opened_here_is_never_read_for_who_joins(replicas: list[Service]) -> None:
    """Not even for whoever is not on it."""
    students = some_students(8)
    await an_open_roll(replicas[0], students=students)

    assert await statements_of(replicas[0], *students[:4]) == [1] * 4
    with statements(replicas[0].engine) as sent:
        answers = await replicas[0].do_all([to_join(students[4]), to_join("eve")])
    assert ([answers[0].seq, answers[1].code], len(sent)) == ([6, "not_enrolled"], 1)
    await all_is_well(replicas[0].engine)


async def test_one_that_was_opened_elsewhere_is_read_for_a_while_then_whole_and_then_not_any_more(
    replicas: list[Service],
) -> None:
    students = some_students(8)
    await an_open_roll(replicas[1], students=students)

    assert await statements_of(replicas[0], *students[:6]) == [2] * 4 + [1] * 2
    await all_is_well(replicas[0].engine)


async def test_what_changes_nothing_is_never_decided_on_what_is_known(replicas: list[Service]) -> None:
    """A refusal would be a stale one; the other replica has let her in since."""
    await an_open_roll(replicas[0])
    await replicas[1].do(changed(students=("ann", "eve"), roster_version=2))
    await replicas[1].do(to_join("eve"))

    [joined] = await replicas[0].do_all([to_join("eve")])

    assert (joined.status, joined.seq) == ("present", 3)


async def test_a_batch_at_a_known_roll_and_at_one_that_is_not_keeps_what_is_known(replicas: list[Service]) -> None:
    await an_open_roll(replicas[0])
    answers = await replicas[0].do_all([to_join("ann"), to_join("ann", "nowhere")])
    assert [answers[0].seq, answers[1].code] == [2, NO_ROLL]

    assert await statements_of(replicas[0], "ben") == [1]
    await all_is_well(replicas[0].engine)


async def test_two_replicas_at_one_roll_read_what_they_touch_and_no_more(replicas: list[Service]) -> None:
    """Each would else read it whole for the other's every commit."""
    students = some_students(60)
    await an_open_roll(replicas[0], students=students)
    counts = []

    for number, student in enumerate(students[:30]):
        counts += await statements_of(replicas[number % 2], student)

    # First in vain on what it knew of the roll, and then under the lock for as long as others who meet there.
    assert counts[-8:] == [2] * 8
    await all_is_well(replicas[0].engine)


async def test_a_roll_that_is_large_is_not_read_whole(replicas: list[Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "LARGEST_ROLL", 7)
    students = some_students(8)
    await an_open_roll(replicas[0], students=students)

    assert await statements_of(replicas[1], *students[:6]) == [2] * 6


async def test_a_name_that_changed_meanwhile_stays_changed(replicas: list[Service], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no change of the roll and takes no number: the roll's row says all the same that the record is another."""
    await an_open_roll(replicas[0], students=["ann"])

    async def renamed() -> None:
        news = changed(students=["ann"], roster_version=2)
        await replicas[1].do(replace(news, data=replace(news.data, roster=(Enrolled("ann", "Ann B."),))))
        assert await value(replicas[1].engine, "SELECT seq FROM attendance.rolls") == 1

    before_it_writes(monkeypatch, renamed)

    await replicas[0].do(to_join("ann"))

    assert await value(replicas[0].engine, "SELECT student_name FROM attendance.records") == "Ann B."
    await all_is_well(replicas[0].engine)


async def test_where_one_roll_of_a_batch_moved_on_nothing_of_the_attempt_is_left(
    replicas: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even of the others, nor in the outbox: all of it is decided once more."""
    for session in ("r1", "r2", "r3"):
        await an_open_roll(replicas[0], session)
    before_it_writes(monkeypatch, lambda: replicas[1].do(ended("r2")))

    answers = await replicas[0].do_all([to_join("ann", session) for session in ("r1", "r2", "r3")])

    assert [answer.code if isinstance(answer, Refused) else answer.seq for answer in answers] == [2, "session_completed", 2]
    assert heard(replicas[0].events) == [(2, "ann"), (2, "ann")]
    joins = "SELECT count(*) FROM attendance.outbox WHERE type = 'rollcall.roll.changed.v1'"
    assert await value(replicas[0].engine, joins) == 2
    for session in ("r1", "r2", "r3"):
        await all_is_well(replicas[0].engine, session)


async def test_who_waits_for_the_lock_of_a_close_sees_what_the_close_made_of_the_roll(
    replicas: list[Service], rolls_engine: AsyncEngine
) -> None:
    """The statement that writes began before the close was committed, and would go by what it saw then."""
    await an_open_roll(replicas[0])
    async with rolls_engine.begin() as closing:
        await closing.execute(text("UPDATE attendance.rolls SET status = 'closed', cause = 'ended', seq = seq + 1"))
        joining = asyncio.create_task(replicas[0].do_all([to_join("ann")]))
        await a_waiter(rolls_engine)

    [answer] = await joining

    assert answer.code == "session_completed"
    assert await value(rolls_engine, "SELECT count(*) FROM attendance.records WHERE joined_at IS NOT NULL") == 0


async def test_who_waits_for_a_lock_under_which_nothing_changed_joins_at_once(
    replicas: list[Service], rolls_engine: AsyncEngine
) -> None:
    await an_open_roll(replicas[0])
    with statements(replicas[0].engine) as sent:
        async with rolls_engine.begin() as other:
            await other.execute(text("SELECT 1 FROM attendance.rolls FOR UPDATE"))
            joining = asyncio.create_task(replicas[0].do(to_join("ann")))
            await a_waiter(rolls_engine)
        assert (await joining).seq == 2

    assert len(sent) == 1
    await all_is_well(rolls_engine)


async def a_waiter(engine: AsyncEngine) -> None:
    """Return once somebody waits for a lock."""
    async with asyncio.timeout(10):
        for _ in itertools.count():
            if await value(engine, "SELECT count(*) FROM pg_locks WHERE NOT granted"):
                return


async def test_after_an_attempt_in_vain_batches_lock_for_a_while(
    replicas: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replicas that are busy with one roll do not do all work twice."""
    students = iter(some_students(40))
    await an_open_roll(replicas[1], students=some_students(40))
    before_it_writes(monkeypatch, lambda: replicas[1].do(to_join(next(students))))
    await replicas[0].do(to_join(next(students)))

    counts = []
    for _ in range(LOCKED_BATCHES + 1):
        with statements(replicas[0].engine) as sent:
            await replicas[0].do(to_join(next(students)))
        counts.append(len(sent))

    assert counts == [4] * LOCKED_BATCHES + [2]
    await all_is_well(replicas[0].engine)
