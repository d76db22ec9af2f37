"""What 0.1 left in the database of attendance-service goes on after the upgrade as if nothing had happened."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest_asyncio
from alembic import command as alembic
from alembic.config import Config
from msgspec import json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from attendance_service import events, rules
from shared.database import open_engine
from shared.messages import ChangesRead, EventData, OwnRecords, ReadChanges, ReadOwnRecords, RollRead, encode_event
from shared.messages import Event as AnEvent
from tests.contract.roll_talk import (
    ADA,
    ANN,
    NINE,
    ROBOT,
    Service,
    a,
    a_roster,
    a_session,
    all_is_well,
    asking,
    ended,
    rows,
    started,
    to_join,
    to_mark,
)


def config_of(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "attendance_service:migrations")
    config.attributes["url"] = url
    return config


def as_0_1_wrote_it(event: AnEvent[EventData]) -> bytes:
    """An event without the fields that have come since."""
    written: dict[str, Any] = json.decode(encode_event(event))
    for new in ("session_version", "reason"):
        written["data"].pop(new, None)
    return json.encode(written)


async def an_0_1_roll(engine: AsyncEngine, session_id: str, *, over: bool) -> list[bytes]:
    """Write a roll as 0.1 did, on which Ann has joined; return the events of the roll itself."""
    at = NINE + timedelta(minutes=1)
    step, records = rules.open_roll(a_session(session_id), a_roster(("ann", "ben")), ADA, NINE, version=2, roster_version=0)
    join = rules.join(step.roll, records[0], ANN, at, "j")
    assert isinstance(join, rules.Step)
    assert join.record is not None
    steps, published = [step, join], [as_0_1_wrote_it(events.opened(step))]
    if over:
        close = rules.close(join.roll, ended(session_id).data.session, 3, "ended", ADA, NINE + timedelta(minutes=45))
        assert isinstance(close, rules.Step)
        steps.append(close)
        published.append(as_0_1_wrote_it(events.closed(close)))
    roll = steps[-1].roll
    async with engine.begin() as connection:
        await connection.execute(
            text(
                """INSERT INTO attendance.rolls (session_id, course_id, session, status, seq, absent, present, late, excused,
                    opened_at, late_at, closes_at, cause, opening, closing)
                VALUES (:session_id, 'c1', CAST(:session AS jsonb), :status, :seq, 1, 1, 0, 0,
                    :opened_at, :late_at, :closes_at, :cause, :opening, :closing)"""
            ),
            {
                "session_id": session_id,
                "session": json.encode(roll.session).decode(),
                **{name: getattr(roll, name) for name in ("status", "seq", "opened_at", "late_at", "closes_at", "cause")},
                "opening": published[0],
                "closing": published[1] if over else None,
            },
        )
        for record in (join.record, records[1]):
            await connection.execute(
                text(
                    """INSERT INTO attendance.records (session_id, student_id, student_name, status, source, seq,
                        joined_at, joined_seq, joined_status)
                    VALUES (:session_id, :student_id, :student_name, :status, :source, :seq,
                        :joined_at, :joined_seq, :joined_status)"""
                ),
                {name: getattr(record, name) for name in record.__struct_fields__},
            )
        for entry in (step.entry for step in steps):
            await connection.execute(
                text(
                    """INSERT INTO attendance.history (session_id, seq, at, kind, student_id, before, after, source,
                        actor, actor_name, command_id)
                    VALUES (:session_id, :seq, :at, :kind, :student_id, :before, :after, :source,
                        :actor, :actor_name, :command_id)"""
                ),
                {name: getattr(entry, name) for name in entry.__struct_fields__},
            )
    return published


@pytest_asyncio.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    """A database with the schema of 0.1."""
    await asyncio.to_thread(alembic.upgrade, config_of(database), "0001")
    engine = open_engine(database, application="test")
    yield engine
    await engine.dispose()


async def upgraded(engine: AsyncEngine, database: str) -> Service:
    await asyncio.to_thread(alembic.upgrade, config_of(database), "head")
    # The statements prepared before know the tables as they were.
    await engine.dispose()
    return Service(engine)


async def test_rolls_of_0_1_are_told_again_to_the_letter(engine: AsyncEngine, database: str) -> None:
    published = {id: await an_0_1_roll(engine, id, over=id == "over") for id in ("on", "over")}

    service = await upgraded(engine, database)

    for session_id, turns in published.items():
        read: ChangesRead = await service.do(a(ReadChanges, ROBOT, session_id, since_seq=0))
        assert [bytes(raw) for raw in (read.events[0], *read.events[2:])] == turns
        await all_is_well(engine, session_id)


async def test_rolls_of_0_1_go_on_as_if_nothing_had_happened(engine: AsyncEngine, database: str) -> None:
    """Repeats of what they have heard change nothing; they are joined, marked, reopened and closed."""
    for id in ("on", "over"):
        await an_0_1_roll(engine, id, over=id == "over")
    service = await upgraded(engine, database)

    roll: RollRead = await service.do(started("over"))
    assert (roll.session.status, roll.seq) == ("completed", 3)
    await service.do(ended("over"))
    assert [(event.id, event.data.session_version) for event in service.events] == [("roll:over:3", 3)] * 2
    assert (await service.do(started("on", ("ann", "ben")))).session.status == "active"
    assert (await service.do(to_join("ben", "on"))).seq == 3
    assert (await service.do(to_mark("ann", "late", session_id="over"))).seq == 4
    await service.do(started("over", ("ann", "ben"), version=4, reason="too early", roster_version=1))
    await service.do(ended("on"))
    own: OwnRecords = await service.do(asking(ReadOwnRecords, ANN, course_id="c1", limit=9))
    assert [(item.session.id, item.record.status) for item in own.items] == [("over", "late"), ("on", "present")]
    statuses = await rows(engine, "SELECT session_id, status FROM attendance.rolls ORDER BY session_id")
    assert statuses == [("on", "closed"), ("over", "open")]
    for id in ("on", "over"):
        await all_is_well(engine, id)


async def test_the_way_back_keeps_what_0_1_knows(engine: AsyncEngine, database: str) -> None:
    published = {id: await an_0_1_roll(engine, id, over=id == "over") for id in ("on", "over")}
    query = "SELECT session_id, opening, closing, seq, status FROM attendance.rolls ORDER BY session_id"
    before = await rows(engine, query)
    await upgraded(engine, database)

    await asyncio.to_thread(alembic.downgrade, config_of(database), "0001")
    await engine.dispose()

    assert await rows(engine, query) == before
    assert [bytes(row[1]) for row in before] == [turns[0] for turns in published.values()]
