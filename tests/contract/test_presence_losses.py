"""What is known of who is connected survives gateways that die or go, and a Redis that forgets. On a real Valkey."""

import asyncio
import time
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from msgspec import json
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisGone

from gateway.presence import KEPT_SECONDS
from gateway.statements import Statement
from shared.errors import Unavailable
from shared.live import Names
from tests.contract.presence_talk import (
    ANN,
    BEN,
    a_marker,
    a_student,
    a_teacher,
    becomes_online,
    eventually,
    gateways,
    has_said,
    left,
    said,
)
from tests.contract.room_events import SID
from tests.contract.room_talk import World, a_world, until

pytestmark = pytest.mark.usefixtures("short_waits")


async def test_those_on_a_gateway_that_dies_are_gone_and_staff_elsewhere_hear_of_it_once(redis_url: str) -> None:
    """Killed, it says nothing any more. Two others host staff; Ben has a socket on one of them too."""
    names = Names(f"test-{uuid4().hex}")
    async with a_world(redis_url, names=names) as one, a_world(redis_url, names=names) as other:
        ears = [await a_teacher(one), await a_teacher(other)]
        async with a_world(redis_url, names=names) as dying:
            await a_student(dying, ANN)
            await a_student(dying, BEN)
            await a_student(one, BEN)
            await becomes_online(one, ANN, BEN)
            for world in (one, other):
                await until(lambda world=world: dying.gateway_id in world.presence._peers)  # type: ignore[misc]

        await becomes_online(one, BEN)
        for ear in ears:
            await until(lambda ear=ear: left(ear) == [ANN])  # type: ignore[misc]
        await a_marker(one, ears, "marker")
        assert [left(ear) for ear in ears] == [[ANN, "marker"]] * 2
        assert dying.gateway_id.encode() not in await one.redis.hkeys(names.presence(SID))


async def test_a_departure_that_a_gateway_saw_and_did_not_live_to_tell_is_told_by_another(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of when it was."""
    monkeypatch.setattr("gateway.presence.GRACE_SECONDS", 60.0)
    names = Names(f"test-{uuid4().hex}")
    async with a_world(redis_url, names=names) as staying:
        ear = await a_teacher(staying)
        async with a_world(redis_url, names=names) as dying:
            await until(lambda: dying.gateway_id in staying.presence._peers)
            dying.presence.leave_all(await a_student(dying))
            await eventually(lambda: said(dying), lambda found: ANN in found.gone)
            [left_at] = (await said(dying)).gone.values()

        await until(lambda: left(ear) == [ANN])
        assert ear.of("studentLeft")[0]["left_at"] == left_at


async def test_a_student_who_left_here_and_on_a_gateway_that_dies_is_told_of_once(redis_url: str) -> None:
    """Whichever finds the other."""
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(here)
        for student_id in ("s10", "s11", "s12"):
            sid = await a_student(there, student_id)
            await has_said(there, student_id)
            dead = Statement(here={student_id: 1})
            await here.redis.hset(here.names.presence(SID), "dead", json.encode(dead))

            there.presence.leave_all(sid)
            await eventually(lambda: said(there), lambda found: bool(found.gone))
            await here.presence.online(SID)

            await until(lambda student_id=student_id: student_id in left(ear))  # type: ignore[misc]
        for world in (here, there):
            await a_marker(world, [ear], world.gateway_id)
        assert left(ear) == ["s10", "s11", "s12", here.gateway_id, there.gateway_id]


async def test_who_may_still_come_back_is_not_told_of_because_of_an_older_socket_on_a_gateway_that_died(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.presence.GRACE_SECONDS", 60.0)
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(here)
        there.presence.leave_all(await a_student(there))
        await eventually(lambda: said(there), lambda found: ANN in found.gone)
        await here.redis.hset(here.names.presence(SID), "dead", json.encode(Statement(here={ANN: 1})))

        await here.presence.online(SID)

        here.presence.leave(SID, await a_student(here, "marker"), at_once=True)
        await until(lambda: left(ear) == ["marker"])


async def test_of_those_who_find_a_gateway_dead_at_the_same_moment_one_takes_its_students_over(redis_url: str) -> None:
    async with gateways(redis_url) as (here, there):
        await here.redis.hset(here.names.presence(SID), "dead", json.encode(Statement(here={ANN: 1})))

        both, execute = asyncio.Barrier(2), Pipeline.execute

        async def together(pipeline: Any, *args: Any) -> Any:
            if pipeline.command_stack[0][0][0] == "HDEL":
                await both.wait()
            return await execute(pipeline, *args)

        with patch.object(Pipeline, "execute", together):
            await asyncio.gather(here.presence.online(SID), there.presence.online(SID))

        assert sum(SID in world.presence._own for world in (here, there)) == 1


async def test_a_gateway_that_was_only_believed_dead_says_all_again(redis_url: str) -> None:
    async with gateways(redis_url) as (here, there):
        await a_student(there, ANN)
        await becomes_online(here, ANN)

        with patch("gateway.presence.BEAT_SECONDS", 60.0):
            await there.redis.delete(there.names.gateway(there.gateway_id))
            await here.presence.online(SID)
            assert not await said(there)

        await becomes_online(here, ANN)


async def test_those_who_do_not_come_back_from_a_gateway_that_goes_are_told_of_by_another(redis_url: str) -> None:
    """Ben is on another gateway before his old one goes; Ann is nowhere, and nobody on hers would be left to say so."""
    names = Names(f"test-{uuid4().hex}")
    async with a_world(redis_url, names=names) as staying:
        ear = await a_teacher(staying)
        async with a_world(redis_url, names=names) as going:
            ann, ben = await a_student(going, ANN), await a_student(going, BEN)
            await becomes_online(staying, ANN, BEN)
            await until(lambda: going.gateway_id in staying.presence._peers)

            going.presence.hand_over()
            going.presence.leave_all(ann)
            going.presence.leave_all(ben)
            await a_student(staying, BEN)

        await until(lambda: left(ear) == [ANN])
        await becomes_online(staying, BEN)


async def test_what_redis_has_lost_is_there_again(redis_url: str) -> None:
    async with gateways(redis_url) as (here, there):
        await a_student(here, ANN)
        await a_student(there, BEN)
        await becomes_online(here, ANN, BEN)

        await forget(here)

        for world in (here, there):
            await becomes_online(world, ANN, BEN)


async def forget(world: World) -> None:
    keys = [key async for key in world.redis.scan_iter(f"{world.names.prefix}:*")]
    assert keys
    await world.redis.delete(*keys)


async def test_everything_in_redis_ends_by_itself(world: World) -> None:
    await a_student(world)
    gone = await a_student(world, BEN)
    world.presence.leave_all(gone)
    await eventually(lambda: said(world), lambda found: BEN in found.gone)

    keys = [key async for key in world.redis.scan_iter(f"{world.names.prefix}:*")]

    assert len(keys) >= 3
    for key in keys:
        assert 0 < await world.redis.ttl(key) <= KEPT_SECONDS


async def test_without_redis_nobody_waits_and_all_is_told_once_it_is_back(world: World) -> None:
    ear = await a_teacher(world)
    sid = await a_student(world, BEN)
    await has_said(world, BEN)

    clock, tried_at = asyncio.get_running_loop().time, 0.0

    async def gone(*_: object, **__: object) -> None:
        nonlocal tried_at
        tried_at = clock()
        raise RedisGone("refused")

    with patch.object(Pipeline, "execute", gone):
        began = time.monotonic()
        await a_student(world, ANN)
        world.presence.leave_all(sid)
        due = world.presence._due[0].at
        assert time.monotonic() - began < 1
        with pytest.raises(Unavailable):
            await world.presence.online(SID)
        # The grace passes, and nobody can be told: it is tried after that.
        await until(lambda: tried_at > due)
        assert left(ear) == []

    await until(lambda: left(ear) == [BEN])
    await has_said(world, ANN)


async def test_who_moved_to_another_gateway_while_redis_lost_everything_has_not_left(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gateway gives the others time to say again where their students are, before it tells of its own departures."""
    monkeypatch.setattr("gateway.presence.GRACE_SECONDS", 1.0)
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(here)
        sid = await a_student(here)
        await has_said(here, ANN)
        cut_off, execute = {here.redis, there.redis}, Pipeline.execute
        clock, tried_at = asyncio.get_running_loop().time, 0.0

        async def through(pipeline: Any, *args: Any) -> Any:
            nonlocal tried_at
            if any(pipeline.connection_pool is redis.connection_pool for redis in cut_off):
                tried_at = clock()
                raise RedisGone("refused")
            return await execute(pipeline, *args)

        with patch.object(Pipeline, "execute", through):
            here.presence.leave_all(sid)
            due = here.presence._due[0].at
            await a_student(there)
            # The grace passes, and what it has to say is tried again after that.
            await until(lambda: tried_at > due)
            await forget(here)
            cut_off.remove(here.redis)
            await eventually(lambda: said(here), lambda found: ANN in found.gone)

        await has_said(there, ANN)
        await a_marker(here, [ear], "marker")
        assert left(ear) == ["marker"]
