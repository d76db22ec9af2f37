"""How a roll is closed: by hand, by submitting, by the clock, by cancelling or by all at once, and told once each time."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from tests.system.rig import Rig, token, unique
from tests.system.talk import Caller, Lecture, Payload, a_lecture, a_session, an_admin, bearer, calling, http, the_session

RACES, LANES = 50, 5


async def forgotten(rig: Rig, lecture: Lecture) -> None:
    """Move a session's times into the past, as if nobody had ended it an hour ago."""
    connection = await asyncpg.connect(rig.database_urls["session_service"])
    try:
        await connection.execute(
            """UPDATE sessions.sessions SET started_at = started_at - interval '3 hours',
                starts_at = started_at - interval '3 hours', ends_at = started_at - interval '90 minutes'
            WHERE id = $1""",
            lecture.session_id,
        )
    finally:
        await connection.close()


@pytest.mark.parametrize("who_started_it", ["is there", "is gone"])
async def test_a_session_ends_by_itself_once_though_every_replica_looks(cluster: Rig, who_started_it: str) -> None:
    """Also when every replica that was there at the start has been killed since."""
    lecture = await a_lecture(cluster.gateways[0])
    replicas = [process for name, process in cluster.processes.items() if name.startswith("session_service")]
    async with (
        calling(cluster.gateways[0], bearer(lecture.teacher, "teacher")) as teacher,
        calling(cluster.gateways[1], bearer(lecture.students[0], "student")) as ann,
    ):
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        assert (await ann.ask("joinAttendanceSession", lecture.about))["ok"]
        if who_started_it == "is gone":
            try:
                for process in replicas:
                    process.kill()
                await forgotten(cluster, lecture)
            finally:
                for process in replicas:
                    process.start()
                for process in replicas:
                    await asyncio.to_thread(process.wait_ready)
        else:
            await forgotten(cluster, lecture)
        ended = [await caller.heard("attendanceSessionEnded") for caller in (teacher, ann)]
        session = await the_session(cluster, lecture, "completed")
        confirmed = await teacher.ask("endAttendanceSession", lecture.about)
        _, history = await http(
            cluster.gateways[0], "GET", f"/sessions/{lecture.session_id}/history", bearer(lecture.teacher, "teacher")
        )
    assert {(each["cause"], each["ended_by_id"]) for each in ended} == {("automatic", "system")}
    assert session["ended_at"] is not None
    assert [(line["kind"], line["source"]) for line in history["items"]][-1] == ("closed", "system")
    assert [line["kind"] for line in history["items"]].count("closed") == 1
    assert confirmed["ok"]
    assert "attendanceSessionEnded" not in teacher.names()


# Each close is told once


async def fence(rig: Rig, lecture: Lecture, listeners: list[Caller]) -> None:
    """Hold one more session of the course, for all to hear: what was told of those before has come by then."""
    following = {"session_id": await a_session(rig.gateways[0], lecture.course_id)}
    admin = an_admin()
    for url, verb in zip(rig.gateways, ("start", "end"), strict=True):
        if verb == "end":
            for caller in listeners:
                assert (await caller.ask("syncAttendanceSession", following))["ok"]
        status, body = await http(url, "POST", f"/sessions/{following['session_id']}/{verb}", admin)
        assert status == 200, body
    for caller in listeners:
        for event in ("attendanceSessionEnded", "courseSessionEnded"):
            await caller.heard(event, lambda ended: ended["session_id"] == following["session_id"])


def closes(caller: Caller, event: str, session_id: str) -> list[Payload]:
    """What a caller heard under one name of one session."""
    return [payload for name, payload in caller.events if name == event and payload["session_id"] == session_id]


@asynccontextmanager
async def listening(rig: Rig, lecture: Lecture) -> AsyncIterator[list[Caller]]:
    """Staff and a student at each gateway, who watch the course too."""
    async with AsyncExitStack() as stack:
        callers = [
            await stack.enter_async_context(calling(url, token_of))
            for url in rig.gateways
            for token_of in (bearer(lecture.teacher, "teacher"), bearer(lecture.students[0], "student"))
        ]
        for caller in callers:
            assert (await caller.ask("subscribeToCourse", {"course_id": lecture.course_id}))["ok"]
        yield callers


@pytest.mark.parametrize("cause", ["ended", "submitted", "automatic", "cancelled"])
async def test_a_close_is_told_once_to_everybody_whatever_was_its_cause(cluster: Rig, cause: str) -> None:
    """To the room and to the course's watchers; ending what has ended tells nobody anything."""
    lecture = await a_lecture(cluster.gateways[0], students=2)
    path, admin = f"/sessions/{lecture.session_id}", an_admin()
    verb = {"ended": "end", "submitted": "submit", "cancelled": "cancel"}.get(cause)
    async with listening(cluster, lecture) as listeners:
        assert (await http(cluster.gateways[0], "POST", f"{path}/start", admin))[0] == 200
        for caller in listeners:
            assert (await caller.ask("syncAttendanceSession", lecture.about))["ok"]
        if verb is None:
            await forgotten(cluster, lecture)
            await the_session(cluster, lecture, "completed")
        else:
            for url in cluster.gateways:
                assert (await http(url, "POST", f"{path}/{verb}", admin))[0] == 200
        for url in cluster.gateways:
            await http(url, "POST", f"{path}/end", admin)
        await fence(cluster, lecture, listeners)
        for caller in listeners:
            told = closes(caller, "attendanceSessionEnded", lecture.session_id)
            assert [each["cause"] for each in told] == [cause]
            assert len(closes(caller, "courseSessionEnded", lecture.session_id)) == 1


@pytest.mark.timeout(240)
async def test_ending_submitting_and_cancelling_at_once_is_one_close_that_says_who_did_it(cluster: Rig) -> None:
    """Fifty times, from both gateways."""
    causes = await asyncio.gather(*(_closing_races(cluster, random.Random(seed)) for seed in range(LANES)))
    assert len({cause for lane in causes for cause in lane}) > 1


async def _closing_races(rig: Rig, chance: random.Random) -> list[str]:
    """Race on a course of its own; tell the cause of each close."""
    lecture = await a_lecture(rig.gateways[0], students=1)
    people = {
        verb: (unique(verb), cause) for verb, cause in (("end", "ended"), ("submit", "submitted"), ("cancel", "cancelled"))
    }
    admin = an_admin()

    async def close(session_id: str, verb: str) -> tuple[int, Payload]:
        await asyncio.sleep(chance.uniform(0, 0.02))
        return await http(
            chance.choice(rig.gateways), "POST", f"/sessions/{session_id}/{verb}", token(people[verb][0], "admin")
        )

    found: dict[str, tuple[str, str]] = {}
    async with listening(rig, lecture) as listeners:
        for _ in range(RACES // LANES):
            session_id = await a_session(rig.gateways[0], lecture.course_id)
            assert (await http(rig.gateways[1], "POST", f"/sessions/{session_id}/start", admin))[0] == 200
            for caller in listeners:
                assert (await caller.ask("syncAttendanceSession", {"session_id": session_id}))["ok"]
            answers = await asyncio.gather(*(close(session_id, verb) for verb in people))
            assert any(status == 200 for status, _ in answers)
            assert {body["error"]["code"] for status, body in answers if status != 200} <= {
                *("session_completed", "session_cancelled", "roll_submitted", "conflict"),
            }
            _, history = await http(rig.gateways[0], "GET", f"/sessions/{session_id}/history", admin)
            closer = next(line["actor"] for line in history["items"] if line["kind"] in ("closed", "cancelled"))
            found[session_id] = next(person for person in people.values() if person[0] == closer)
        await fence(rig, lecture, listeners)
        for session_id, (closer, cause) in found.items():
            for caller in listeners:
                told = closes(caller, "attendanceSessionEnded", session_id)
                assert [(each["cause"], each["ended_by_id"]) for each in told] == [(cause, closer)]
                assert len(closes(caller, "courseSessionEnded", session_id)) == 1
    return [cause for _, cause in found.values()]
