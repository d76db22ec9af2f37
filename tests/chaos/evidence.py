"""What is left of a run when all has settled, read where it lies: Postgres, the broker, the logs."""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aio_pika
import asyncpg

from attendance_service.rules import Entry, Record
from shared import topology
from tests.chaos.journal import Sent, Views
from tests.chaos.world import World
from tests.system.talk import Payload

EVENTS = "chaos.events"
SETTLE_SECONDS = 60.0
_LENGTH = re.compile(r'queue,\s*<<"([^"]+)">>\}\},\s*\{messages,(\d+)\}')
_UNANSWERED = """SELECT count(*) FROM sessions.sessions WHERE turn_version > roll_version"""


class Head(NamedTuple):
    """A roll's own row."""

    status: str
    cause: str | None
    seq: int
    absent: int
    present: int
    late: int
    excused: int


class SessionRow(NamedTuple):
    """What session-service knows of a session."""

    status: str
    version: int
    turn_version: int
    roll_version: int


@dataclass
class Evidence:
    """Everything the checker looks at."""

    journal: Sequence[Sent] = ()
    views: Sequence[Views] = ()
    heads: dict[str, Head] = field(default_factory=dict)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    records: dict[str, dict[str, Record]] = field(default_factory=dict)
    sessions: dict[str, SessionRow] = field(default_factory=dict)
    courses: dict[str, int] = field(default_factory=dict)
    events: list[Payload] = field(default_factory=list)
    """In the order in which they came, repeats included."""

    parked: list[str] = field(default_factory=list)
    poisons: Sequence[str] = ()
    neighbours: Sequence[tuple[str, str]] = ()
    tracebacks: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What had not come to rest in time."""


async def listen_from_now_on(world: World) -> None:
    """Bind a queue of our own to every event there will be."""
    async with await aio_pika.connect(world.broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(EVENTS, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(topology.EVENTS, "#")


async def settled(world: World) -> list[str]:
    """Wait until nothing is on its way any more; return what still was at the deadline."""
    deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
    while True:
        left = await _on_its_way(world)
        if not left or asyncio.get_running_loop().time() > deadline:
            return left
        await asyncio.sleep(0.2)


async def queue_lengths(world: World) -> dict[str, int]:
    """How many messages each queue of Rollcall's holds, those in the hands of consumers included."""
    said = await asyncio.to_thread(world.broker.call, "rabbit_amqqueue, info_all", '<<"/">>, [name, messages]')
    lengths = {name: int(number) for name, number in _LENGTH.findall(said)}
    assert lengths.keys() >= set(topology.WORK_QUEUES), f"the broker does not tell of every queue: {said[:500]}"
    return {name: number for name, number in lengths.items() if name not in (EVENTS, topology.STREAM)}


async def _on_its_way(world: World) -> list[str]:
    connection = await asyncpg.connect(world.database_url)
    try:
        left = [
            f"{count} rows in {schema}.outbox"
            for schema in ("sessions", "attendance")
            if (count := await connection.fetchval(f"SELECT count(*) FROM {schema}.outbox"))
        ]
        if count := await connection.fetchval(_UNANSWERED):
            left.append(f"{count} sessions whose roll has not reported")
    finally:
        await connection.close()
    if left:
        return left
    lengths = await queue_lengths(world)
    return [f"{count} messages in {name}" for name, count in lengths.items() if count and name != topology.PARKING]


async def gather(world: World, evidence: Evidence) -> None:
    """Read what is in Postgres, on the broker and in the logs."""
    await _read_postgres(world, evidence)
    evidence.events = [json.loads(body) for body in await _emptied(world, EVENTS)]
    evidence.parked = [body.decode(errors="replace") for body in await _emptied(world, topology.PARKING)]
    for process in world.rig.processes.values():
        evidence.tracebacks += tracebacks(process.name, process.log.read_text(errors="replace"))


async def _read_postgres(world: World, evidence: Evidence) -> None:
    connection = await asyncpg.connect(world.database_url)

    async def rows(query: str) -> list[dict[str, Any]]:
        return [dict(row) for row in await connection.fetch(query)]

    try:
        for row in await rows("SELECT session_id, status, cause, seq, absent, present, late, excused FROM attendance.rolls"):
            session_id = row.pop("session_id")
            evidence.heads[session_id] = Head(**row)
        for row in await rows("SELECT * FROM attendance.history ORDER BY session_id, seq"):
            evidence.entries.setdefault(row["session_id"], []).append(Entry(**row))
        for row in await rows("SELECT * FROM attendance.records"):
            evidence.records.setdefault(row["session_id"], {})[row["student_id"]] = Record(**row)
        for row in await rows("SELECT id, status, version, turn_version, roll_version FROM sessions.sessions"):
            session_id = row.pop("id")
            evidence.sessions[session_id] = SessionRow(**row)
        evidence.courses = {row["id"]: row["version"] for row in await rows("SELECT id, version FROM sessions.courses")}
    finally:
        await connection.close()


async def _emptied(world: World, name: str) -> list[bytes]:
    """Take everything out of a queue."""
    bodies = []
    async with await aio_pika.connect(world.broker.url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(name)
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            bodies.append(message.body)
    return bodies


def tracebacks(name: str, log: str) -> list[str]:
    """Find what was logged with a traceback; a parked message's is expected, for it says which defect parked it."""
    found = []
    for line in log.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            # A library's own line, or a traceback in the open.
            if re.search(r"Traceback|Error:|exception", line):
                found.append(f"{name}: {line}")
            continue
        if "exception" in said and said.get("event") != "worker.parked":
            last_line = said["exception"].strip().splitlines()[-1]
            found.append(f"{name}: {said['event']}: {last_line}")
    return found
