"""Who is connected, on a real Valkey: true on every gateway, told once, and said in few words."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from redis.asyncio.client import Pipeline

from gateway.presence import ALIVE_SECONDS, BEAT_SECONDS, GRACE_SECONDS, KEPT_SECONDS, REPEAT_SECONDS, TOLD_SECONDS
from gateway.statements import decode_moved
from shared.clock import parse_rfc3339, utc_now
from tests.contract.presence_talk import (
    ANN,
    BEN,
    GRACE,
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
from tests.contract.room_talk import SECONDS, World, a_world, until

pytestmark = pytest.mark.usefixtures("short_waits")


def test_the_real_waits_are_those_of_the_design() -> None:
    """A gateway may miss a beat; a dead one is noticed within half a minute; nothing lapses that is repeated."""
    assert 2 * BEAT_SECONDS < ALIVE_SECONDS
    assert ALIVE_SECONDS + BEAT_SECONDS < 30
    assert 2 * REPEAT_SECONDS < KEPT_SECONDS
    assert ALIVE_SECONDS + BEAT_SECONDS + GRACE_SECONDS < TOLD_SECONDS < KEPT_SECONDS


async def test_who_is_connected_is_known_on_every_gateway(redis_url: str) -> None:
    async with gateways(redis_url) as (here, there):
        await a_student(here, ANN)
        await a_student(there, BEN)

        for world in (here, there):
            await becomes_online(world, ANN, BEN)


async def test_a_gateway_knows_of_its_own_at_once(world: World) -> None:
    """Before Redis has been told."""
    sid = await a_student(world)
    assert set(await world.presence.online(SID)) == {ANN}

    world.presence.leave_all(sid)

    assert set(await world.presence.online(SID)) == set()


async def test_who_has_gone_is_told_to_staff_on_every_gateway_once_and_after_the_grace(redis_url: str) -> None:
    async with gateways(redis_url) as (here, there):
        ears = [await a_teacher(here), await a_teacher(there)]
        sid = await a_student(here)
        await becomes_online(there, ANN)

        gone, began = utc_now(), time.monotonic()
        here.presence.leave_all(sid)
        await becomes_online(there)

        for ear in ears:
            await until(lambda ear=ear: left(ear) == [ANN])  # type: ignore[misc]
            [said] = ear.of("studentLeft")
            assert set(said) == {"session_id", "student_id", "left_at"}
            assert (said["session_id"], said["student_id"]) == (SID, ANN)
            # When they went, not when that was certain.
            assert gone <= parse_rfc3339(said["left_at"]) < utc_now()
        assert time.monotonic() - began >= GRACE
        await a_marker(here, ears, "marker")
        assert [left(ear) for ear in ears] == [[ANN, "marker"]] * 2


@pytest.mark.parametrize("back", ["here", "there"])
async def test_who_comes_back_within_the_grace_has_not_left(redis_url: str, back: str) -> None:
    """To the same gateway or another."""
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(here)
        sid = await a_student(here)
        await becomes_online(there, ANN)

        here.presence.leave_all(sid)
        await a_student({"here": here, "there": there}[back])

        await a_marker(here, [ear], "marker")
        assert left(ear) == ["marker"]
        await becomes_online(there, ANN)


@pytest.mark.parametrize("order", ["here first", "there first"])
async def test_a_student_with_two_sockets_leaves_with_the_last(redis_url: str, order: str) -> None:
    """On two gateways; it is told once, whoever tells it."""
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(here)
        sockets = [(here, await a_student(here)), (there, await a_student(there))]
        first, last = sockets if order == "here first" else reversed(sockets)
        await becomes_online(here, ANN)

        first[0].presence.leave_all(first[1])
        await a_marker(first[0], [ear], "between")
        assert left(ear) == ["between"]
        await becomes_online(here, ANN)
        last[0].presence.leave_all(last[1])

        await until(lambda: left(ear) == ["between", ANN])
        await a_marker(first[0], [ear], "after")
        assert left(ear) == ["between", ANN, "after"]


async def test_two_sockets_that_go_at_the_same_moment_are_one_departure(redis_url: str) -> None:
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(here)
        sockets = [(here, await a_student(here)), (there, await a_student(there))]
        await becomes_online(here, ANN)

        for world, sid in sockets:
            world.presence.leave_all(sid)

        await until(lambda: ANN in left(ear))
        for world in (here, there):
            await a_marker(world, [ear], world.gateway_id)
        assert left(ear).count(ANN) == 1


async def test_of_many_who_go_together_a_part_is_told_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody else waits for it; in the order in which they went."""
    monkeypatch.setattr("gateway.presence._SETTLED_AT_ONCE", 2)
    students = [f"m{number}" for number in range(5)]
    sockets = [await a_student(world, student_id) for student_id in students]
    await has_said(world, *students)

    async with world.redis.pubsub() as heard:
        await heard.subscribe(world.names.presence_channel(SID))
        told: list[list[str]] = []
        async with asyncio.timeout(SECONDS):
            assert (await heard.parse_response())[0] == b"subscribe"
            for sid in sockets:
                world.presence.leave_all(sid)
            while sum(map(len, told)) < len(students):
                message = await heard.parse_response()
                told.append([each.student_id for each in decode_moved(message[2]) if each.left_at is not None])
    assert [student for part in told for student in part] == students
    assert max(map(len, told)) <= 2


async def test_two_tabs_on_one_gateway_are_one_student(world: World) -> None:
    ear = await a_teacher(world)
    tabs = [await a_student(world), await a_student(world)]

    world.presence.leave_all(tabs[0])
    await a_marker(world, [ear], "marker")
    assert left(ear) == ["marker"]
    assert set(await world.presence.online(SID)) == {ANN}
    world.presence.leave_all(tabs[1])

    await until(lambda: left(ear) == ["marker", ANN])


async def test_who_leaves_on_purpose_has_left_at_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.presence.GRACE_SECONDS", 60.0)
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(there)
        sid = await a_student(here)
        await becomes_online(there, ANN)

        assert here.presence.leave(SID, sid, at_once=True)
        assert not here.presence.leave(SID, sid, at_once=True)

        await until(lambda: left(ear) == [ANN])


async def test_who_leaves_on_purpose_after_their_socket_elsewhere_was_lost_is_told_of_once(redis_url: str) -> None:
    """The gateway that lost it finds that all has been told."""
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(here)
        lost, closed = await a_student(here), await a_student(there)
        await has_said(there, ANN)

        here.presence.leave_all(lost)
        await has_said(here)
        there.presence.leave(SID, closed, at_once=True)

        await until(lambda: left(ear) == [ANN])
        await a_marker(here, [ear], "marker")
        assert left(ear) == [ANN, "marker"]


async def test_a_student_in_two_sessions_leaves_the_one_they_leave(world: World) -> None:
    sid = await a_student(world)
    world.presence.enter("other", ANN, sid)

    world.presence.leave("other", sid)

    assert set(await world.presence.online(SID)) == {ANN}
    assert set(await world.presence.online("other")) == set()


@contextmanager
def counted(world: World) -> Iterator[list[int]]:
    """Count the commands by which a gateway says something, for each round trip."""
    trips: list[int] = []
    execute = Pipeline.execute

    async def counting(pipeline: Any, *args: Any) -> Any:
        key = world.names.presence(SID)
        if count := sum(command[0][:2] == ("HSET", key) for command in pipeline.command_stack):
            trips.append(count)
        return await execute(pipeline, *args)

    with patch.object(Pipeline, "execute", counting):
        yield trips


@asynccontextmanager
async def counting(world: World) -> AsyncIterator[list[int]]:
    """Count as `counted` does, of a gateway that neither beats nor repeats meanwhile."""
    with (
        counted(world) as trips,
        patch("gateway.presence.BEAT_SECONDS", 60.0),
        patch("gateway.presence.REPEAT_SECONDS", 60.0),
    ):
        presence, now = world.presence, asyncio.get_running_loop().time
        await presence._say_all_again()
        await until(lambda: min(presence._beat_at, presence._repeat_at) > now() + 30)
        yield trips


async def test_a_thousand_joins_are_a_few_round_trips(world: World) -> None:
    async with counting(world) as trips:
        for number in range(1000):
            world.presence.enter(SID, f"s{number}", f"sid{number}")
            if number % 100 == 0:
                await asyncio.sleep(0.001)
        await eventually(lambda: said(world), lambda found: len(found.here) == 1000)

    assert len(trips) <= 12


async def test_joins_that_come_together_are_one_command(world: World) -> None:
    async with counting(world) as trips:
        for number in range(1000):
            world.presence.enter(SID, f"s{number}", f"sid{number}")
        await eventually(lambda: said(world), lambda found: len(found.here) == 1000)

    assert trips == [1]


async def test_the_more_there_is_to_say_the_longer_it_is_gathered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large room all is said with each join: that must not come to be all that a gateway does."""
    monkeypatch.setattr("gateway.presence._GATHER_SECONDS", 0.0)
    monkeypatch.setattr("gateway.presence._BYTE_SECONDS", 1.0)
    async with counting(world) as trips:
        for number in range(50):
            world.presence.enter(SID, f"s{number}", f"sid{number}")
            # Each a round trip after the one before: time enough to say it.
            await world.redis.ping()
        await eventually(lambda: said(world), lambda found: len(found.here) == 50)

    # The first at once, for there was nothing to wait for, and each second what has come meanwhile.
    assert len(trips) <= 3


async def test_a_thousand_who_leave_together_are_all_told(world: World) -> None:
    ear = await a_teacher(world)
    for number in range(1000):
        world.presence.enter(SID, f"s{number}", f"sid{number}")
    await eventually(lambda: said(world), lambda found: len(found.here) == 1000)

    for number in range(1000):
        world.presence.leave_all(f"sid{number}")

    await until(lambda: len(ear.of("studentLeft")) == 1000)
    assert set(left(ear)) == {f"s{number}" for number in range(1000)}


async def test_what_is_over_is_said_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.presence.TOLD_SECONDS", 0.1)
    ear = await a_teacher(world)

    await a_marker(world, [ear], ANN)

    await eventually(lambda: world.redis.exists(world.names.presence(SID)), lambda there: not there)
    # Redis may answer a second client sooner than the gateway has read that it is done.
    await until(lambda: not world.presence._own)


async def test_whom_it_has_merely_told_of_it_does_not_say_again_and_who_is_here_it_does(world: World) -> None:
    """After a school has gone home that would be megabytes, again and again."""
    ear = await a_teacher(world)
    await a_marker(world, [ear], ANN)
    await eventually(lambda: said(world), lambda found: (*found.here, *found.gone, *found.told) == (ANN,))

    async def said_in_two_repeats() -> int:
        with counted(world) as trips:
            for _ in range(2):
                before = world.presence._repeat_at
                await until(lambda before=before: world.presence._repeat_at > before)  # type: ignore[misc]
        return len(trips)

    assert await said_in_two_repeats() == 0
    await a_student(world, BEN)
    await has_said(world, BEN)
    assert await said_in_two_repeats() >= 1


async def test_a_field_that_cannot_be_read_says_nothing(redis_url: str) -> None:
    """Of a gateway that lives, or of none."""
    async with gateways(redis_url) as (here, there):
        await a_student(here, ANN)
        await has_said(here, ANN)
        key = here.names.presence(SID)
        await there.redis.hset(
            key, mapping={there.gateway_id: b"\xff", "s9 socket": "gateway", b"\xff": b"", "x": b'{"here":[]}'}
        )

        assert set(await here.presence.online(SID)) == set(await there.presence.online(SID)) == {ANN}
        await a_student(there, BEN)
        await becomes_online(here, ANN, BEN)


async def test_a_gateway_without_staff_does_not_listen_to_who_leaves(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.rooms.HEADS_SECONDS", 0.02)
    async with a_world(redis_url) as world:
        student, _ = await world.a_listener(1, "student", ANN)
        channel = world.names.presence_channel(SID)
        assert channel not in world.listener.channels

        ear = await a_teacher(world)
        await world.leave(ear)

        await until(lambda: channel not in world.listener.channels)
        await eventually(lambda: world.listening_to(channel), lambda count: count == 0)
        again = await a_teacher(world)
        sid = await a_student(world, BEN)
        world.presence.leave_all(sid)
        await until(lambda: left(again) == [BEN])
        assert left(student) == left(ear) == []
