"""Students who left, as their teachers were told, and come back: teachers are told that, too. On a real Valkey."""

import asyncio

import pytest

from gateway.statements import decode_moved
from shared.errors import Refused
from tests.contract.presence_talk import (
    ANN,
    BEN,
    a_marker,
    a_student,
    a_teacher,
    becomes_online,
    gateways,
    has_said,
    left,
)
from tests.contract.room_events import NINE, SID
from tests.contract.room_talk import SECONDS, Ear, World, until

pytestmark = pytest.mark.usefixtures("short_waits")


def returned(ear: Ear) -> list[str]:
    return [payload["student_id"] for payload in ear.of("studentJoinedAttendance")]


async def goes(world: World, sid: str, ears: list[Ear], student_id: str = ANN) -> None:
    """Have a student leave for good, and staff told."""
    before = [len(left(ear)) for ear in ears]
    world.presence.leave_all(sid)
    for ear, count in zip(ears, before, strict=True):
        await until(lambda ear=ear, count=count: left(ear)[count:] == [student_id])  # type: ignore[misc]


@pytest.mark.parametrize("back", ["here", "there"])
async def test_who_comes_back_is_told_to_staff_on_every_gateway_as_they_stand(redis_url: str, back: str) -> None:
    async with gateways(redis_url) as (here, there):
        ears = [await a_teacher(here), await a_teacher(there)]
        await goes(here, await a_student(here), ears)

        await a_student({"here": here, "there": there}[back], again=True)

        for ear in ears:
            await until(lambda ear=ear: returned(ear) == [ANN])  # type: ignore[misc]
            [told] = ear.of("studentJoinedAttendance")
            assert told == {
                "session_id": SID,
                "student_id": ANN,
                "student_name": "Student 2",
                "joined_at": NINE,
                "status": "present",
                # Their record's is 2, which these rooms have not heard of yet.
                "seq": 1,
            }
        await a_marker(there, ears, "marker")
        assert [returned(ear) for ear in ears] == [[ANN]] * 2


async def test_it_is_told_each_time(world: World) -> None:
    ear = await a_teacher(world)
    sid = await a_student(world)
    for times in (1, 2):
        await goes(world, sid, [ear])
        sid = await a_student(world, again=True)
        await until(lambda times=times: returned(ear) == [ANN] * times)  # type: ignore[misc]
    assert left(ear) == [ANN, ANN]


async def test_nobody_is_told_of_who_had_not_left_as_far_as_they_know(redis_url: str) -> None:
    """Who returns within the grace, has another socket still, joins for the first time, or left before staff came."""
    async with gateways(redis_url) as (here, there):
        await goes(here, await a_student(here, "s4"), [early := await a_teacher(here)], "s4")
        ear = await a_teacher(there)
        sid = await a_student(here, ANN)
        await a_student(here, BEN)
        await becomes_online(there, ANN, BEN)

        here.presence.leave_all(sid)
        await a_student(there, ANN, again=True)
        await a_student(there, BEN, again=True)
        await a_student(here, "s5")
        await a_student(here, "s4", again=True)

        await until(lambda: returned(early) == ["s4"])
        await a_marker(there, [ear, early], "marker")
        await a_marker(here, [ear, early], "another")
        assert (returned(ear), returned(early)) == ([], ["s4"])


async def test_who_has_gone_again_meanwhile_is_not_told_of(world: World) -> None:
    """The roll takes its time to be read."""
    ear = await a_teacher(world)
    await goes(world, await a_student(world), [ear])
    world.reading.clear()
    reads = world.reads
    sid = await a_student(world, again=True)
    await until(lambda: world.reads > reads)

    world.presence.leave_all(sid)
    await until(lambda: left(ear) == [ANN, ANN])
    world.reading.set()

    await a_marker(world, [ear], "marker")
    assert returned(ear) == []


async def test_it_is_told_though_the_roll_cannot_be_read_at_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.requests.AGAIN_SECONDS", 0.01)
    ear = await a_teacher(world)
    await goes(world, await a_student(world), [ear])
    world.refusals = [Refused("timeout"), Refused("unavailable")]

    await a_student(world, again=True)

    await until(lambda: returned(ear) == [ANN])
    assert world.refusals == []


async def test_it_is_told_though_redis_is_away_just_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = await a_teacher(world)
    await goes(world, await a_student(world), [ear])
    publish, refused = world.redis.pipeline, asyncio.Event()

    def once_in_vain(*, transaction: bool) -> object:
        pipeline = publish(transaction=transaction)
        original = pipeline.execute

        async def execute() -> object:
            if any("PUBLISH" in str(command) for command in pipeline.command_stack) and not refused.is_set():
                refused.set()
                raise ConnectionError("Redis is away")
            return await original()

        monkeypatch.setattr(pipeline, "execute", execute)
        return pipeline

    monkeypatch.setattr(world.redis, "pipeline", once_in_vain)
    await a_student(world, again=True)

    await until(lambda: returned(ear) == [ANN])
    assert refused.is_set()
    await has_said(world, ANN)


async def test_who_came_and_went_while_the_roll_was_read_is_told_of_once(world: World) -> None:
    """However many come back meanwhile, the roll is read once more."""
    ear = await a_teacher(world)
    await goes(world, ann := await a_student(world), [ear])
    await goes(world, await a_student(world, BEN), [ear], BEN)
    reads = world.reads
    world.reading.clear()
    ann = await a_student(world, again=True)
    await until(lambda: world.reads > reads)

    await goes(world, ann, [ear])
    await a_student(world, BEN, again=True)
    await a_student(world, again=True)
    await becomes_online(world, ANN, BEN)
    await has_said(world, ANN, BEN)
    world.reading.set()

    await until(lambda: sorted(returned(ear)) == [ANN, BEN])
    await a_marker(world, [ear], "marker")
    assert sorted(returned(ear)) == [ANN, BEN]
    assert world.reads <= reads + 2


async def test_a_first_join_is_no_news_among_gateways(world: World) -> None:
    """Hundreds come at once."""
    async with world.redis.pubsub() as heard:
        await heard.subscribe(world.names.presence_channel(SID))
        async with asyncio.timeout(SECONDS):
            assert (await heard.parse_response())[0] == b"subscribe"
            await a_student(world, ANN)
            await has_said(world, ANN)
            await a_student(world, BEN, again=True)
            message = await heard.parse_response()
    assert [(each.student_id, each.left_at) for each in decode_moved(message[2])] == [(BEN, None)]


async def test_those_of_a_gateway_that_was_taken_for_dead_are_back_when_it_is(redis_url: str) -> None:
    """It was only cut off, or stood still: the others have told that all its students left."""
    async with gateways(redis_url) as (here, there):
        ear = await a_teacher(there)
        await a_student(here, ANN)
        await becomes_online(there, ANN)
        keep = here.presence._keep

        async def stand_still() -> None:
            """Say nothing."""

        here.presence._keep = stand_still  # type: ignore[method-assign]
        await here.redis.delete(here.names.gateway(here.gateway_id))
        await until(lambda: left(ear) == [ANN])
        here.presence._keep = keep  # type: ignore[method-assign]

        await until(lambda: returned(ear) == [ANN])
        await becomes_online(there, ANN)
