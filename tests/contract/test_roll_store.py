"""attendance-service on a real Postgres: its rolls open, its statements use their indexes, the whole of it answers."""

import asyncio
from datetime import timedelta

import pytest
from msgspec import Raw, json
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from attendance_service.__main__ import serve
from attendance_service.live import HEAD_TTL_SECONDS, LiveRolls
from attendance_service.store import columns, snapshots, units
from attendance_service.store.attempts import Attempts
from shared.bus import OutgoingEvent
from shared.clock import rfc3339, utc_now
from shared.errors import Unavailable
from shared.live import Names
from shared.memory_bus import MemoryBus
from shared.messages import (
    ATTENDANCE_COMMANDS,
    Answer,
    ReplyTo,
    RollJoined,
    RollRead,
    decode_answers,
    decode_event,
    encode,
)
from shared.outbox import Outbox, OutboxRow
from tests.contract.bus_talk import send_once
from tests.contract.roll_talk import (
    NAMES,
    Service,
    a_session,
    all_is_well,
    an_open_roll,
    nobody_listens,
    some_students,
    started,
    statements,
    to_join,
    value,
)

pytest_plugins = ("tests.contract.roll_fixtures",)


# Opening


async def test_a_started_session_opens_its_roll_and_is_answered_with_it(service: Service) -> None:
    service.now += timedelta(seconds=1)

    roll: RollRead = await service.do(started())

    assert (roll.session, roll.seq) == (a_session(), 1)
    assert [(r.student_id, r.student_name, r.status, r.source, r.seq) for r in roll.records] == [
        (student, student.title(), "absent", "system", 1) for student in ("ann", "ben", "cid")
    ]
    assert (roll.statistics.total_students, roll.statistics.absent_count, roll.statistics.attendance_rate) == (3, 3, 0)
    [event] = service.events
    assert (event.id, event.type, event.sequence, event.data.first_seq) == (
        "roll:5e55:1",
        "rollcall.roll.opened.v1",
        1,
        1,
    )
    assert (event.data.opened_by, event.data.opened_at) == ("Ada", rfc3339(service.now))
    assert service.left[0].channels == (NAMES.roll_channel("5e55"), NAMES.course_channel("c1"))
    assert service.left[0].event.reply_to is None
    await all_is_well(service.engine)


async def test_a_session_told_of_twice_opens_once_and_says_so_again_to_the_letter(service: Service) -> None:
    first = await service.do(started())
    service.now += timedelta(minutes=5)

    again = await service.do(started(students=("eve",)))

    assert again == first
    assert service.left[1].event.body == service.left[0].event.body
    assert service.left[1].channels == (), "who listens live has heard it"
    assert await value(service.engine, "SELECT count(*) FROM attendance.history") == 1
    assert await value(service.engine, "SELECT count(*) FROM attendance.records") == 3
    assert await value(service.engine, "SELECT count(*) FROM attendance.outbox") == 2


async def test_a_session_told_of_twice_in_one_batch_opens_once_and_answers_both(service: Service) -> None:
    answers = await service.do_all([started("b"), started("a"), started("b")])

    assert [answer.session.id for answer in answers] == ["b", "a", "b"]
    assert [event.id for event in service.events] == ["roll:a:1", "roll:b:1"]


async def test_a_roll_that_has_moved_on_is_answered_as_it_is_and_its_opening_said_as_it_was(service: Service) -> None:
    await service.do(started())
    await service.do(to_join("ann"))

    again: RollRead = await service.do(started())

    assert (again.seq, again.statistics.present_count) == (2, 1)
    assert service.left[-1].event.body == service.left[0].event.body


async def test_two_replicas_that_open_a_roll_at_once_open_it_once(replicas: list[Service]) -> None:
    replicas[1].now += timedelta(seconds=9)
    sessions = [f"r{number}" for number in range(10)]

    await asyncio.gather(
        replicas[0].do_all([started(session, some_students(50)) for session in sessions]),
        replicas[1].do_all([started(session, some_students(50)) for session in reversed(sessions)]),
    )

    bodies = [{row.event.id: row.event.body for row in replica.left} for replica in replicas]
    assert bodies[0] == bodies[1]
    assert len(bodies[0]) == 10
    for session in sessions:
        await all_is_well(replicas[0].engine, session)


async def test_an_event_without_a_reply_address_answers_nobody(service: Service) -> None:
    outcome = await service.handle([replace(started(), reply_to=None)])

    assert outcome.answers == []
    assert len(outcome.events) == 1


async def test_a_roll_of_ten_thousand_opens_in_as_many_statements_as_a_small_one(service: Service) -> None:
    counts = []
    for session, size in (("small", 3), ("large", 10_000)):
        with statements(service.engine) as sent:
            roll: RollRead = await service.do(started(session, some_students(size)))
        counts.append(len(sent))
        assert len(roll.records) == size

    assert counts[0] == counts[1] <= 12
    await all_is_well(service.engine, "large")


async def test_a_roll_with_nobody_on_it_opens(service: Service) -> None:
    roll: RollRead = await service.do(started(students=()))

    assert (roll.records, roll.statistics.attendance_rate) == ((), None)


# Plans


@pytest.mark.parametrize("analysed", [False, True])
async def test_the_hot_statements_use_an_index_also_on_tables_freshly_filled(rolls_engine: AsyncEngine, analysed: bool) -> None:
    """Before the first ANALYZE the planner guesses, and a scan of a full table would cost each batch seconds."""
    async with rolls_engine.begin() as connection:
        for table in ("rolls", "records", "history", "answers", "milestones", "courses", "outbox"):
            await connection.execute(text(f"ALTER TABLE attendance.{table} SET (autovacuum_enabled = false)"))
        session = json.encode(a_session()).decode()
        await connection.execute(
            text(
                """INSERT INTO attendance.rolls (session_id, course_id, session, status, seq, absent, present, late, excused,
                opened_at, session_version, started_version, ended_version, roster_version, renewed_at)
                SELECT 'r' || n, 'c' || n % 300, CAST(:session AS jsonb), 'open', 1, 20, 0, 0, 0, now(), 2, 2, 0, 1, now()
                FROM generate_series(1, 3000) AS n"""
            ),
            {"session": session},
        )
        await connection.execute(
            text(
                """INSERT INTO attendance.records (session_id, student_id, student_name, status, source, seq, enrolled)
                SELECT 'r' || n, 's' || m, 'S', 'absent', 'system', 1, true
                FROM generate_series(1, 3000) AS n, generate_series(1, 20) AS m"""
            )
        )
        await connection.execute(
            text(
                """INSERT INTO attendance.history (session_id, seq, at, kind, student_id, source, actor, actor_name)
                SELECT 'r' || n, m, now(), (ARRAY['joined', 'marked'])[1 + m % 2], 's' || m, 'self', 'a', 'A'
                FROM generate_series(1, 3000) AS n, generate_series(1, 20) AS m"""
            )
        )
        await connection.execute(
            text(
                """INSERT INTO attendance.answers (session_id, actor_id, command_id, kind, answer, at)
                SELECT 'r' || n, 'a', 'k' || m, 'MarkRecord', '', now()
                FROM generate_series(1, 3000) AS n, generate_series(1, 20) AS m"""
            )
        )
        await connection.execute(
            text(
                """INSERT INTO attendance.milestones SELECT 'r' || n, 1, convert_to(repeat('x', 900), 'UTF8')
                FROM generate_series(1, 3000) AS n"""
            )
        )
        await connection.execute(
            text("INSERT INTO attendance.courses SELECT 'c' || n, 1, '[]' FROM generate_series(1, 3000) AS n")
        )
        await connection.execute(
            text(
                """INSERT INTO attendance.outbox (id, event_id, type, channels, body)
                SELECT gen_random_uuid(), 'e', 't', '{}', '' FROM generate_series(1, 3000)"""
            )
        )
        if analysed:
            await connection.execute(text("ANALYZE"))
    sessions = [f"r{number}" for number in range(1, 257) for _ in range(2)]
    students = [f"s{1 + number % 20}" for number in range(512)]
    rolls = sorted(set(sessions))
    heads = {name: [None if kind == "text" else 1] * len(rolls) for name, kind in columns.HEAD.items()}
    nothing: dict[str, list[object]] = {"records": [], "entries": []}
    outbox = Outbox("attendance", MemoryBus(), nobody_listens)
    attempts, leaving = Attempts(outbox), outbox.leaving([])
    commands = {"sessions": sessions, "actors": ["a"] * 512, "commands": [f"k{number}" for number in range(512)]}
    own = {"student_id": "s1", "course_id": None, "before": "r7", "limit": 50}
    for statement, parameters in (
        (units.LOCK_ROLLS, {"ids": rolls}),
        (columns.TOUCHED_RECORDS, {"sessions": sessions, "students": students}),
        (units.ENTRIES, {"sessions": sessions, "seqs": [2] * 512}),
        (units.ANSWERS, commands),
        (units.MILESTONES, {"ids": rolls[:32]}),
        (units.WRITE, {**nothing, "ids": rolls, **heads}),
        (text(attempts.reading.written), {"ids": rolls, "sessions": sessions, "students": students, "whole": rolls[:20]}),
        (text(attempts.writing.written), {**nothing, "ids": rolls, "versions": [1] * len(rolls), **heads, **leaving}),
        (columns.WHOLE_ROLL, {"session_id": "r1"}),
        (snapshots.HISTORY, {"session_id": "r1", "since": 3, "limit": 1000}),
        (snapshots.OWN_RECORDS, own),
        (snapshots.OWN_HISTORY, {"student_id": "s1", "sessions": rolls[:50]}),
        (snapshots.ACTIVE, {"course_id": "c7"}),
        (snapshots.SUMMARY, {"course_id": "c7"}),
    ):
        async with rolls_engine.connect() as connection:
            plan = [row[0] for row in await connection.execute(text(f"EXPLAIN {statement.text}"), parameters)]
        assert not [line for line in plan if "Seq Scan" in line], "\n".join([statement.text, *plan])


async def subscribed(live: PubSub, *channels: str) -> None:
    """Subscribe to channels, and wait until that is confirmed."""
    await live.subscribe(*channels)
    async with asyncio.timeout(10):
        for _ in channels:
            while await live.get_message(timeout=5) is None:
                continue


async def heard(live: PubSub, count: int) -> list[tuple[str, bytes]]:
    """Wait for so many messages; list their channels and what was said."""
    messages: list[tuple[str, bytes]] = []
    async with asyncio.timeout(10):
        while len(messages) < count:
            message = await live.get_message(timeout=5)
            if message is not None and message["type"] == "message":
                messages.append((message["channel"].decode(), message["data"]))
    return messages


def said(session_id: str, seq: int, *channels: str) -> OutboxRow:
    names = tuple(f"live {channel}" for channel in channels)
    return OutboxRow(OutgoingEvent(f"roll:{session_id}:{seq}", "roll.changed", b"%d" % seq), names)


async def test_all_of_a_batch_is_told_in_order_on_each_of_its_channels_and_heads_only_move_forward(redis_url: str) -> None:
    redis, names = Redis.from_url(redis_url), Names("test_roll_store_live")
    live, rolls = redis.pubsub(), LiveRolls(redis, names)
    await subscribed(live, "live a", "live b", "live c")
    try:
        await rolls.broadcast([said("5e55", 2, "a"), said("0ther", 7, "b", "c"), said("5e55", 3, "a", "b"), said("m1ne", 4)])
        await rolls.broadcast([said("5e55", 2, "a")])

        told = [("live a", b"2"), ("live b", b"7"), ("live c", b"7"), ("live a", b"3"), ("live b", b"3"), ("live a", b"2")]
        assert await heard(live, len(told)) == told
        heads = [await redis.hget(names.roll_head(session_id), "seq") for session_id in ("5e55", "0ther", "m1ne")]
        assert heads == [b"3", b"7", b"4"]
        assert 0 < await redis.ttl(names.roll_head("m1ne")) <= HEAD_TTL_SECONDS
    finally:
        await live.aclose()  # type: ignore[no-untyped-call]
        await redis.aclose()


async def test_a_redis_that_takes_no_writes_still_tells_who_listens(redis_url: str) -> None:
    redis, names = Redis.from_url(redis_url), Names("test_roll_store_full")
    live, rolls = redis.pubsub(), LiveRolls(redis, names)
    await subscribed(live, "live full")
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await rolls.broadcast([said("5e55", 2, "full"), said("0ther", 7, "full")])
    finally:
        await redis.config_set("maxmemory", 0)

    assert await heard(live, 2) == [("live full", b"2"), ("live full", b"7")]
    await live.aclose()  # type: ignore[no-untyped-call]
    await redis.aclose()


# The whole service


async def test_the_service_answers_over_the_bus_and_tells_who_listens(rolls_engine: AsyncEngine, redis_url: str) -> None:
    """A command in, its answer out after the commit; its event once to who listens live, and the head moves."""
    bus, redis, names = MemoryBus(), Redis.from_url(redis_url), Names("test_roll_store")
    answers: list[Answer] = []
    queue = await bus.receive_answers(lambda body: answers.extend(decode_answers(body)))
    live = redis.pubsub()
    await live.subscribe(names.roll_channel("5e55"))
    await an_open_roll(Service(rolls_engine))
    command = to_join("ann", reply_to=ReplyTo(queue, "1"), deadline=utc_now() + timedelta(seconds=10))

    async with asyncio.timeout(10), serve(bus, rolls_engine, redis, names, utc_now) as ready:
        assert await ready()
        await send_once(bus, ATTENDANCE_COMMANDS, encode(command))
        heard = await live.get_message(timeout=5)
        while heard is None or heard["type"] != "message":
            heard = await live.get_message(timeout=5)

    [answer] = answers
    assert isinstance(answer.result, Raw)
    assert json.decode(answer.result, type=RollJoined).seq == 2
    told = decode_event(heard["data"])
    assert told is not None
    assert told.id == "roll:5e55:2"
    assert await redis.hget(names.roll_head("5e55"), "seq") == b"2"
    assert await redis.ttl(names.roll_head("5e55")) > 0
    await live.aclose()  # type: ignore[no-untyped-call]
    await redis.aclose()
    await bus.close()
