"""Joins are decided without a lock: whatever happens to the roll between reading and writing, nothing stale is written."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from attendance_service.store import LOCKED_BATCHES
from attendance_service.store.attempts import Attempt, Attempts
from shared.database import Connection
from shared.errors import Refused
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

    async def write_after(attempts: Attempts, connection: Connection, attempt: Attempt) -> bool:
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
async def test_a_join_is_decided_anew_when_its_roll_moved_on_meanwhile(
    replicas: list[Service],
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Service], Awaitable[Any]],
    answer: str | tuple[str, int],
) -> None:
    await an_open_roll(replicas[0])
    before_it_writes(monkeypatch, lambda: happens(replicas[1]))

    [joined] = await replicas[0].do_all([to_join("ann")])

    assert (joined.code if isinstance(joined, Refused) else (joined.status, joined.seq)) == answer
    await all_is_well(replicas[0].engine)


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

    assert len(sent) == 2
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
    await an_open_roll(replicas[0], students=some_students(40))
    before_it_writes(monkeypatch, lambda: replicas[1].do(to_join(next(students))))
    await replicas[0].do(to_join(next(students)))

    counts = []
    for _ in range(LOCKED_BATCHES + 1):
        with statements(replicas[0].engine) as sent:
            await replicas[0].do(to_join(next(students)))
        counts.append(len(sent))

    assert counts == [4] * LOCKED_BATCHES + [2]
    await all_is_well(replicas[0].engine)
