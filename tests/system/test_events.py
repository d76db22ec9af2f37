"""What other services hear, and that a gateway hears only what it hosts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from redis.asyncio import Redis

from shared.clock import parse_rfc3339
from shared.live import Names
from tests.system.rig import Rig
from tests.system.talk import a_lecture, an_admin, bearer, calling, http

SECONDS = 10


@asynccontextmanager
async def another_service(rig: Rig) -> AsyncIterator[asyncio.Queue[aio_pika.abc.AbstractIncomingMessage]]:
    """Consume every event there is, as any other service may."""
    heard: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(rig.environment["ROLLCALL_AMQP_URL"]) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind("rollcall.events", "#")
        await queue.consume(heard.put, no_ack=True)
        yield heard


async def test_a_lecture_is_told_as_cloud_events(cluster: Rig) -> None:
    """Every commit once, numbered without gaps in its source, and without anybody's e-mail address."""
    async with another_service(cluster) as heard:
        lecture = await a_lecture(cluster.gateways[0], students=2)
        async with (
            calling(cluster.gateways[0], bearer(lecture.teacher, "teacher")) as teacher,
            calling(cluster.gateways[1], bearer(lecture.students[0], "student")) as student,
        ):
            await teacher.ask("startAttendanceSession", lecture.about)
            await student.ask("joinAttendanceSession", lecture.about)
            await teacher.ask("endAttendanceSession", lecture.about)
        events: dict[str, dict[str, Any]] = {}
        types = {"course.changed", "session.scheduled", "session.started", "session.ended"}
        types |= {"roll.opened", "roll.changed", "roll.closed"}
        async with asyncio.timeout(SECONDS):
            while len(events) < len(types):
                message = await heard.get()
                event = json.loads(message.body)
                if lecture.session_id not in event["source"] and lecture.course_id not in event["source"]:
                    continue
                assert message.content_type == "application/cloudevents+json"
                assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
                assert message.routing_key == event["type"]
                events[event["type"]] = event
    assert set(events) == {f"rollcall.{name}.v1" for name in types}
    assert "@" not in json.dumps(list(events.values()))
    for event in events.values():
        assert event["specversion"] == "1.0"
        assert parse_rfc3339(event["time"])
        assert event["datacontenttype"] == "application/json"
        assert event["sequence"].isdigit()
    numbers = [
        (events[f"rollcall.roll.{name}.v1"]["data"]["first_seq"], int(events[f"rollcall.roll.{name}.v1"]["sequence"]))
        for name in ("opened", "changed", "closed")
    ]
    assert numbers == [(1, 1), (2, 2), (3, 3)]
    changed = events["rollcall.roll.changed.v1"]
    assert changed["source"] == f"/rolls/{lecture.session_id}"
    (change,) = changed["data"]["changes"]
    assert (change["kind"], change["student_id"], change["before"], change["after"]) == (
        "joined",
        lecture.students[0],
        "absent",
        "present",
    )
    assert changed["data"]["statistics"]["presentCount"] == 1
    assert events["rollcall.roll.closed.v1"]["data"]["cause"] == "ended"


async def test_a_whole_life_is_told_without_gaps_in_any_source(cluster: Rig) -> None:
    """Changed, marked in bulk, submitted, reopened, cancelled: every commit is there, and every number once."""
    here, there = cluster.gateways
    admin = an_admin()
    async with another_service(cluster) as heard:
        lecture = await a_lecture(here, students=3)
        session, course = f"/sessions/{lecture.session_id}", f"/courses/{lecture.course_id}"
        students = {"student_id": lecture.students[0], "status": "late"}, {"student_id": lecture.students[1], "status": "late"}
        async with calling(there, admin) as caller:
            steps = (
                caller.ask("startAttendanceSession", lecture.about),
                http(here, "POST", f"{course}/roster/walk-in", admin, json={"name": "W", "email": "w@example.org"}),
                http(here, "PATCH", session, admin, json={"title": "Searching"}),
                caller.ask("bulkUpdateAttendance", {**lecture.about, "attendanceUpdates": students}),
                caller.ask("submitAttendance", lecture.about),
                caller.ask("reopenAttendanceSession", {**lecture.about, "reason": "too early"}),
                http(here, "POST", f"{session}/cancel", admin),
            )
            for step in steps:
                answer = await step
                assert answer[0] in (200, 201) if isinstance(answer, tuple) else answer["ok"], answer
        sources: dict[str, dict[str, dict[str, Any]]] = {
            f"/{kind}/{id_}": {}
            for kind, id_ in (("rolls", lecture.session_id), ("sessions", lecture.session_id), ("courses", lecture.course_id))
        }
        last = {f"/rolls/{lecture.session_id}": "roll.closed", f"/sessions/{lecture.session_id}": "session.cancelled"}
        async with asyncio.timeout(SECONDS):
            while not all(
                any(
                    event["type"] == f"rollcall.{kind}.v1" and event["data"].get("cause", "cancelled") == "cancelled"
                    for event in sources[source].values()
                )
                for source, kind in last.items()
            ):
                event = json.loads((await heard.get()).body)
                if event["source"] in sources:
                    sources[event["source"]].setdefault(event["id"], event)
    assert "@" not in json.dumps(sources)
    for source, events in sources.items():
        reached = 0
        for event in sorted(events.values(), key=lambda event: str(event["sequence"])):
            assert event["data"]["first_seq"] == reached + 1, (source, event["type"])
            reached = int(event["sequence"])
    of_roll = sorted(sources[f"/rolls/{lecture.session_id}"].values(), key=lambda event: str(event["sequence"]))
    assert [event["type"].split(".")[2] for event in of_roll] == [
        "opened",
        "changed",
        "changed",
        "closed",
        "submitted",
        "opened",
        "closed",
    ]
    assert [change["kind"] for event in of_roll[1:3] for change in event["data"]["changes"]] == ["enrolled", "marked", "marked"]
    assert {event["data"].get("cause") for event in of_roll if "closed" in event["type"]} == {"submitted", "cancelled"}


async def test_the_stream_keeps_the_events_for_replay(cluster: Rig) -> None:
    lecture = await a_lecture(cluster.gateways[0])
    async with await aio_pika.connect(cluster.environment["ROLLCALL_AMQP_URL"]) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        stream = await channel.get_queue("rollcall.events.stream", ensure=False)
        found = asyncio.Event()

        async def look(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            await message.ack()
            if lecture.session_id.encode() in message.body:
                found.set()

        await stream.consume(look, arguments={"x-stream-offset": "first"})
        async with asyncio.timeout(SECONDS):
            await found.wait()


async def test_a_gateway_listens_only_to_what_it_hosts(cluster: Rig) -> None:
    """One teacher at one gateway: one subscription to their roll, and none once they have gone."""
    channel = Names(cluster.environment["ROLLCALL_REDIS_PREFIX"])
    async with Redis.from_url(cluster.environment["ROLLCALL_REDIS_URL"]) as redis:
        lecture = await a_lecture(cluster.gateways[0])
        name = channel.roll_channel(lecture.session_id)
        await http(cluster.gateways[1], "POST", f"/sessions/{lecture.session_id}/start", an_admin())
        assert await redis.pubsub_numsub(name) == [(name.encode(), 0)]
        async with calling(cluster.gateways[0], bearer(lecture.teacher, "teacher")) as teacher:
            await teacher.ask("getAttendanceSessionData", lecture.about)
            assert await redis.pubsub_numsub(name) == [(name.encode(), 1)]

        async def unheard() -> None:
            while await redis.pubsub_numsub(name) != [(name.encode(), 0)]:
                pass

        await asyncio.wait_for(unheard(), SECONDS)
