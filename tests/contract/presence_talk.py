"""Students who come and go on one gateway or two, on a real Valkey, and what their teachers are told of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from gateway.statements import Statement, decode_statement
from shared.live import Names
from tests.contract.room_events import SID
from tests.contract.room_talk import SECONDS, Ear, World, a_world, until

ANN, BEN = "s2", "s3"
GRACE = 0.3


@asynccontextmanager
async def gateways(url: str) -> AsyncIterator[tuple[World, World]]:
    """Run two gateways of one deployment."""
    names = Names(f"test-{uuid4().hex}")
    async with a_world(url, names=names) as here, a_world(url, names=names) as there:
        yield here, there


async def a_student(world: World, student_id: str = ANN, *, again: bool = False) -> str:
    """Count in a student who has joined, just now or before; return their socket."""
    ear = await world.a_socket("student", student_id)
    world.presence.enter(SID, student_id, ear.member.sid, again=again)
    return ear.member.sid


async def a_teacher(world: World) -> Ear:
    """Let a teacher in, and see that their gateway listens to who leaves."""
    ear, _ = await world.a_listener()
    await eventually(lambda: world.listening_to(world.names.presence_channel(SID)), lambda count: count >= 1)
    return ear


async def eventually(ask: Callable[[], Awaitable[Any]], fits: Callable[[Any], bool], seconds: float = SECONDS) -> None:
    """Ask until the answer fits: Valkey tells nobody."""
    async with asyncio.timeout(seconds):
        # Each look is a round trip, during which everybody else has their turn.
        while not fits(await ask()):
            pass


async def becomes_online(world: World, *students: str) -> None:
    """Wait until just these are connected, as seen from here."""
    await eventually(lambda: world.presence.online(SID), lambda online: set(online) == set(students))


async def said(world: World) -> Statement:
    """Read what this gateway has said."""
    body = await world.redis.hget(world.names.presence(SID), world.gateway_id)
    return decode_statement(body) if isinstance(body, bytes) else Statement()


async def has_said(world: World, *students: str) -> None:
    """Wait until Redis has it that just these are connected here."""
    await eventually(lambda: said(world), lambda found: found.here.keys() == set(students))


def left(ear: Ear) -> list[str]:
    return [payload["student_id"] for payload in ear.of("studentLeft")]


async def a_marker(world: World, ears: list[Ear], student_id: str) -> None:
    """Have another student leave, and wait until that is heard: whatever was still to come has come by then."""
    sid = await a_student(world, student_id)
    world.presence.leave_all(sid)
    for ear in ears:
        await until(lambda ear=ear: left(ear)[-1:] == [student_id])  # type: ignore[misc]
