"""Who watches a course, on a real Valkey: each beginning and end is told once, and whoever may not hear any more does not."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import json
from msgspec.structs import replace

from gateway.room import Kind
from gateway.watchers import Watched
from shared.errors import Refused, Unavailable
from shared.messages import CourseChanged, Enrolled, Event, Role, SessionChanged, SessionStarted, Standing
from tests.contract.room_events import COURSE, NINE, SID, a_close, a_course, a_join, a_session, active, an_opening
from tests.contract.room_talk import Ear, World, until

numbers = itertools.count()
STARTED, ENDED, ACTIVE = "courseSessionStarted", "courseSessionEnded", "activeSessionsData"


async def a_watcher(
    world: World, kind: Kind = "student", user_id: str = "", *, role: Role | None = None, namespace: str = "/"
) -> Ear:
    """Let somebody watch, who was answered with what is on."""
    ear = await world.a_socket(kind, user_id, namespace, role)
    await watch(world, ear)
    return ear


async def watch(world: World, ear: Ear) -> Watched:
    async with world.courses.entering(COURSE) as course:
        since = course.turns
        world.watchers.admit(course, ear.member, since, active(*world.active))
    await until(lambda: ear.member.sid in course.watchers)
    return course


async def looked_at(world: World) -> None:
    """Wait until it has been asked who may listen and what is on, as of now."""
    looks, world.course.look_at = world.looks + world.course.looking, 0
    await until(lambda: world.looks > looks and not world.course.looking)


def turns(ear: Ear) -> list[tuple[str, str]]:
    """What an ear heard of which session."""
    return [(name, payload["session_id"]) for name, payload in ear.heard if name in (STARTED, ENDED)]


async def marker(world: World, *ears: Ear) -> None:
    """Have one more session begin, and wait until that is heard: whatever was still to come has come by then."""
    await world.say_of_the_course(an_opening(1, f"marker-{next(numbers)}"))
    for ear in ears:
        await until(lambda ear=ear: bool(ear.heard) and turns(ear)[-1][1].startswith("marker"))  # type: ignore[misc]
        ear.heard.pop()


async def test_watchers_hear_that_a_session_is_on_and_that_it_is_over(world: World) -> None:
    ears = [await a_watcher(world), await a_watcher(world, "staff", namespace="/attendance")]

    await world.say_of_the_course(an_opening(1), a_close(2))

    for ear in ears:
        await until(lambda ear=ear: turns(ear) == [(STARTED, SID), (ENDED, SID)])  # type: ignore[misc]
        [started], [ended] = ear.of(STARTED), ear.of(ENDED)
        assert started == {
            "course_id": COURSE,
            "session_id": SID,
            "session_topic": "x",
            "teacher_name": "Ada",
            "total_students": 400,
            "started_at": None,
        }
        assert (ended["course_id"], ended["final_statistics"]["totalStudents"]) == (COURSE, 400)
        assert (ended["ended_by"], ended["ended_at"]) == ("Ada", NINE)


async def test_what_the_saga_or_the_sweep_repeats_is_told_once(world: World) -> None:
    ear = await a_watcher(world)

    await world.say_of_the_course(an_opening(1), an_opening(1), a_close(5), an_opening(1), a_close(5))

    await marker(world, ear)
    assert turns(ear) == [(STARTED, SID), (ENDED, SID)]


async def test_a_session_opened_again_has_started_again_and_ends_again(world: World) -> None:
    ear = await a_watcher(world)

    await world.say_of_the_course(an_opening(1), a_close(5), an_opening(6, reason="by mistake"), a_close(7))

    await until(lambda: turns(ear) == [(STARTED, SID), (ENDED, SID)] * 2)


async def test_who_heard_of_an_end_hears_of_no_other_when_the_session_is_cancelled_too(world: World) -> None:
    ear = await a_watcher(world)

    await world.say_of_the_course(an_opening(1), a_close(2), a_close(3, closed_before=True))
    # The first end of this one is lost.
    await world.say_of_the_course(an_opening(1, "other"), a_close(3, "other", closed_before=True))

    await marker(world, ear)
    assert turns(ear) == [(STARTED, SID), (ENDED, SID), (STARTED, "other"), (ENDED, "other")]


async def test_an_end_that_overtakes_its_beginning_leaves_nothing_behind(world: World) -> None:
    ear = await a_watcher(world)

    await world.say_of_the_course(a_close(2), an_opening(1))

    await marker(world, ear)
    assert turns(ear) == []


async def test_a_repeat_of_what_the_answer_said_is_told_to_nobody(world: World) -> None:
    """The saga repeats the opening of a session that was on when they began to watch, or the end of one that was over."""
    world.active = [SID]
    ear = await a_watcher(world)

    await world.say_of_the_course(an_opening(1), a_close(9, "over"))
    await marker(world, ear)
    assert turns(ear) == []
    await world.say_of_the_course(a_close(2))

    await until(lambda: turns(ear) == [(ENDED, SID)])


@pytest.mark.parametrize("known", [True, False])
async def test_nothing_is_missed_between_the_reading_and_the_answer(world: World, known: bool) -> None:
    """Whether the list that was read had it already or not, and for who watches anew as for who did before."""
    first = await a_watcher(world)
    ears = [await world.a_socket("student", "s3"), first]
    for number, ear in enumerate(ears):
        session_id = f"session-{number}"
        async with world.courses.entering(COURSE) as course:
            since = course.turns
            await world.say_of_the_course(an_opening(1, session_id))
            await until(lambda course=course, since=since: course.turns > since)  # type: ignore[misc]
            ear.heard.clear()
            world.watchers.admit(course, ear.member, since, active(*([session_id] if known else [])))
        await marker(world, ear)
        assert turns(ear) == ([] if known else [(STARTED, session_id)])


async def test_what_one_watchers_list_showed_is_still_told_to_the_others(world: World) -> None:
    """The list is read after the commit and before the event comes: that one knows, those who watched before do not."""
    first = await a_watcher(world)
    await looked_at(world)
    world.active = [SID]
    second = await a_watcher(world, user_id="s3")

    await world.say_of_the_course(an_opening(1))
    await marker(world, first, second)
    assert (turns(first), turns(second)) == ([(STARTED, SID)], [])
    await world.say_of_the_course(a_close(2))

    for ear in (first, second):
        await until(lambda ear=ear: turns(ear)[-1:] == [(ENDED, SID)])  # type: ignore[misc]


async def test_who_stops_watching_hears_nothing_more(world: World) -> None:
    ears = [await a_watcher(world), await a_watcher(world), await a_watcher(world, user_id="s3")]

    world.watchers.leave(COURSE, ears[0].member.sid)
    world.watchers.leave(COURSE, ears[0].member.sid)
    await world.leave(ears[1])
    await world.say_of_the_course(an_opening(1))

    await until(lambda: turns(ears[2]) == [(STARTED, SID)])
    assert turns(ears[0]) == turns(ears[1]) == []


async def test_a_course_is_listened_to_while_it_concerns_somebody_here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher, or who listens to one of its rolls."""
    monkeypatch.setattr("gateway.courses.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("gateway.rooms.HEADS_SECONDS", 0.02)
    channel = world.names.course_channel(COURSE)
    ear = await a_watcher(world)
    listener, _ = await world.a_listener()

    await world.leave(ear)
    await until(lambda: SID in world.rooms.staffed() and not world.course.watched.watchers)
    assert channel in world.listener.channels
    await world.leave(listener)

    await until(lambda: channel not in world.listener.channels)
    again = await a_watcher(world)
    await world.say_of_the_course(an_opening(1))
    await until(lambda: turns(again) == [(STARTED, SID)])


# Redis


async def test_after_a_lost_connection_watchers_are_told_how_things_stand(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.requests.AGAIN_SECONDS", 0.01)
    ear = await a_watcher(world)
    await world.say_of_the_course(an_opening(1))
    await until(lambda: turns(ear) == [(STARTED, SID)])
    await looked_at(world)
    world.active = ["another"]
    world.course_refusals = [Refused("timeout"), Unavailable("no broker")]

    await world.redis.client_kill_filter(_type="pubsub")

    await until(lambda: len(ear.of(ACTIVE)) == 1)
    [told] = ear.of(ACTIVE)
    assert told == {"course_id": COURSE, "activeSessions": json.decode(json.encode(active("another")))}
    # What is told now is known: a repeat of its opening is none, its end is one.
    await world.say_of_the_course(an_opening(1, "another"), a_close(2, "another"))
    await until(lambda: turns(ear) == [(STARTED, SID), (ENDED, "another")])


async def test_a_teacher_who_was_removed_while_redis_was_away_hears_no_more_once_it_is_back(world: World) -> None:
    ear, room = await world.a_listener()
    world.teacher_ids = ("ben",)

    await world.redis.client_kill_filter(_type="pubsub")

    await until(lambda: ear.member.sid not in room.members)


# Who may


def course_changed(version: int, *teacher_ids: str) -> Event[Any]:
    data = CourseChanged(first_seq=version, course=a_course(teacher_ids))
    return of_course(data, version, f"/courses/{COURSE}")


def roster_changed(version: int, *roster: str, removed: tuple[str, ...] = ()) -> Event[Any]:
    """Of the session that is on."""
    data = SessionChanged(
        first_seq=version,
        session=a_session(),
        roster=tuple(Enrolled(student_id, "x") for student_id in roster),
        roster_version=version,
        removed=removed,
        changed_by="Ada",
        changed_by_id="ada",
    )
    return of_course(data, version, f"/sessions/{SID}")


def of_course(data: Any, version: int, source: str) -> Event[Any]:
    return Event(id=f"{source}:{version}", source=source, time=NINE, sequence=version, data=data)


async def test_a_teacher_who_teaches_the_course_no_more_hears_no_more(world: World) -> None:
    """On all their sockets, and nobody else: not who stays, not an admin, not a student who is no teacher at all."""
    stays = [
        (await world.a_listener(user_id="ben"))[0],
        (await world.a_listener(1, "student", "s2"))[0],
    ]
    admin = await world.a_socket("staff", "root", role="admin")
    await world.enter(admin, 1)
    goes, _ = await world.a_listener(user_id="ada")
    watching = [await a_watcher(world, "staff", name) for name in ("ada", "ben")]
    watching.append(await a_watcher(world, "student", "s2"))

    await world.say_of_the_course(course_changed(7, "ben", "cleo"))
    room = world.rooms.room_of(SID)
    await until(lambda: room is not None and goes.member.sid not in room.members)
    await world.commit(a_join(2))
    await world.say_of_the_course(an_opening(1, "another"))

    for ear in (stays[0], admin):
        await until(lambda ear=ear: ear.joins == [2])  # type: ignore[misc]
    for ear in (stays[1], admin):
        await until(lambda ear=ear: ear.progress == [2])  # type: ignore[misc]
    for ear in watching[1:]:
        await until(lambda ear=ear: turns(ear) == [(STARTED, "another")])  # type: ignore[misc]
    assert goes.heard == watching[0].heard == []


async def test_a_teacher_who_is_enrolled_stays_or_comes_back_as_a_student(world: World) -> None:
    ear = await world.a_socket("student", "ada", role="teacher")
    await world.enter(ear, 1)
    watching = await a_watcher(world, "student", "ada", role="teacher")
    gone, room = await world.a_listener(user_id="ada")

    await world.say_of_the_course(course_changed(7, "ben"))
    await until(lambda: gone.member.sid not in room.members)

    assert ear.member.sid in room.members
    await world.say_of_the_course(an_opening(1, "another"))
    await until(lambda: turns(watching) == [(STARTED, "another")])
    # By a sync, which answers them as the student they still are.
    again = replace(gone.member, kind="student")
    world.rooms.admit(room, again, 1, course_id=COURSE)
    await until(lambda: room.members.get(again.sid) is again)
    assert not room.staff_members


async def test_an_older_change_of_the_course_takes_nobody_out(world: World) -> None:
    ear, room = await world.a_listener(user_id="ada")

    await world.say_of_the_course(course_changed(7, "ada"), course_changed(6, "ben"), course_changed(8, "ada"))

    await until(lambda: world.course.version == 8)
    assert ear.member.sid in room.members


async def test_who_is_let_in_by_a_service_that_has_not_heard_yet_goes_a_moment_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.courses.SECOND_LOOK_SECONDS", 0.2)
    await world.a_listener(user_id="ben")
    await world.say_of_the_course(course_changed(7, "ben"), roster_changed(3, removed=("s2",)))
    await until(lambda: (world.course.version, world.course.roster_version) == (7, 3))
    world.teacher_ids, world.strangers = ("ben",), {"s2"}
    teacher, room = await world.a_listener(user_id="ada")
    student, _ = await world.a_listener(1, "student", "s2")

    await until(lambda: not {teacher.member.sid, student.member.sid} & room.members.keys(), seconds=2)


async def test_a_student_who_is_taken_off_the_roster_hears_no_more_of_it(world: World) -> None:
    """On all their sockets; a classmate does, and so does who is there as staff."""
    staff, room = await world.a_listener(user_id="s2")
    gone = [(await world.a_listener(1, "student", "s2"))[0] for _ in range(2)]
    classmate, _ = await world.a_listener(1, "student", "s3")
    watching = [await a_watcher(world, "student", name) for name in ("s2", "s3")]
    watching.append(await a_watcher(world, "staff", "s2"))
    for ear in (*gone, classmate):
        world.presence.enter(SID, ear.member.user_id, ear.member.sid)

    await world.say_of_the_course(roster_changed(3, "s3", removed=("s2",)))
    await until(lambda: not {ear.member.sid for ear in gone} & room.members.keys())
    await world.commit(a_join(2))
    await world.say_of_the_course(an_opening(1, "another"))

    await until(lambda: staff.joins == [2] and classmate.progress == [2])
    for ear in watching[1:]:
        await until(lambda ear=ear: turns(ear) == [(STARTED, "another")])  # type: ignore[misc]
    assert gone[0].heard == gone[1].heard == watching[0].heard == []
    assert set(await world.presence.online(SID)) == {"s3"}
    await until(lambda: [each["student_id"] for each in staff.of("studentLeft")] == ["s2"])


async def test_an_old_change_of_the_roster_sends_nobody_away(world: World) -> None:
    """The sweep of the outbox may tell once more of the removal of somebody who is enrolled again."""
    await world.a_listener()
    await world.say_of_the_course(roster_changed(3, removed=("s2",)), roster_changed(4, "s2"))
    await until(lambda: world.course.roster_version == 4)
    ear, room = await world.a_listener(1, "student", "s2")
    watching = await a_watcher(world, "student", "s2")

    await world.say_of_the_course(roster_changed(3, removed=("s2",)))

    await marker(world, watching)
    assert ear.member.sid in room.members


async def test_a_student_who_is_enrolled_again_is_not_taken_out_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.courses.SECOND_LOOK_SECONDS", 0.1)
    ear, room = await world.a_listener(1, "student", "s2")
    await world.say_of_the_course(roster_changed(3, removed=("s2",)))
    await until(lambda: ear.member.sid not in room.members)

    await world.say_of_the_course(roster_changed(4, "s2"))
    await until(lambda: world.course.roster_version == 4)
    await world.enter(ear, 1)
    looks = world.looks
    await until(lambda: world.looks > looks and not world.course.looking)

    assert ear.member.sid in room.members


# What was lost


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Courses are looked at again at once, so to speak."""
    monkeypatch.setattr("gateway.courses.AGAIN_SECONDS", 0.1)
    monkeypatch.setattr("gateway.courses.LATE_SECONDS", 0.05)
    monkeypatch.setattr("gateway.courses.LOOK_SECONDS", 0.02)


async def test_whoever_may_not_listen_any_more_is_found_though_no_event_comes(world: World, often: None) -> None:
    """RabbitMQ took the event and Redis did not, or the student left the roster while nothing was on: nobody tells."""
    stays = [(await world.a_listener(user_id="ben"))[0], (await world.a_listener(1, "student", "s3"))[0]]
    goes = [(await world.a_listener(user_id="ada"))[0], (await world.a_listener(1, "student", "s2"))[0]]
    watching = {name: await a_watcher(world, "student", name) for name in ("s2", "s3")}
    world.presence.enter(SID, "s2", goes[1].member.sid)
    room = world.rooms.room_of(SID)
    assert room is not None

    world.teacher_ids, world.strangers = ("ben",), {"s2"}

    await until(lambda: room.members.keys() == {ear.member.sid for ear in stays})
    await until(lambda: world.course.watched.watchers.keys() == {watching["s3"].member.sid})
    assert await world.presence.online(SID) == set()
    await world.commit(a_join(2))
    await until(lambda: stays[0].joins == [2])
    assert goes[0].joins == []


async def test_a_teacher_who_was_removed_before_the_course_was_listened_to_is_found(world: World) -> None:
    """Its channel is subscribed to only after the first answer, in which they were still one: so it is looked at then."""
    ear = await world.a_socket("staff", "ada")
    async with world.entering(SID) as room:
        world.teacher_ids = ("ben",)
        world.admit(room, ear, 1)

    await until(lambda: world.looks == 1 and not room.listeners())


async def test_somebody_who_is_dismissed_on_their_way_in_stays_out(world: World) -> None:
    first, room = await world.a_listener(user_id="ben")
    await world.commit(a_join(2), a_close(3))
    await until(lambda: first.ends == 1)
    world.reading.clear()
    ear = await world.a_socket("staff", "ada")
    await world.enter(ear, 2)
    await until(lambda: world.reads == 2)

    await world.say_of_the_course(course_changed(7, "ben"))
    await until(lambda: not room.entering)
    world.reading.set()
    await world.commit(a_join(4), a_close(5))
    await until(lambda: first.ends == 2)

    assert ear.member.sid not in room.members
    assert ear.heard == []


async def test_a_turn_that_was_lost_is_told_as_a_list_to_those_who_missed_it(world: World, often: None) -> None:
    ear = await a_watcher(world)
    world.active = [SID]
    other = await a_watcher(world, user_id="s3")

    await until(lambda: len(ear.of(ACTIVE)) == 1)
    for _ in range(2):
        await looked_at(world)

    assert [each["sessionId"] for each in ear.of(ACTIVE)[0]["activeSessions"]] == [SID]
    assert (len(ear.heard), other.heard) == (1, [])
    await world.say_of_the_course(a_close(2))
    for each in (ear, other):
        await until(lambda each=each: turns(each) == [(ENDED, SID)])  # type: ignore[misc]


async def test_a_turn_that_is_read_before_its_event_comes_is_still_told_as_a_turn(
    world: World, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: who began to watch just before a start was told a list in place of it, and clients wait for the start."""
    monkeypatch.setattr("gateway.courses.LATE_SECONDS", 30)
    ear = await a_watcher(world)
    world.active, reads = [SID], world.reads_of_active
    await until(lambda: world.reads_of_active > reads)

    await world.say_of_the_course(an_opening(1))

    await until(lambda: turns(ear) == [(STARTED, SID)])
    assert ear.of(ACTIVE) == []


async def test_students_who_were_removed_while_redis_was_away_hear_no_more_once_it_is_back(world: World) -> None:
    ear, room = await world.a_listener(1, "student", "s2")
    watching = await a_watcher(world, "student", "s2")
    await looked_at(world)
    world.strangers = {"s2"}

    await world.redis.client_kill_filter(_type="pubsub")

    await until(lambda: ear.member.sid not in room.members)
    await until(lambda: watching.member.sid not in world.course.watched.watchers)


# Before a beginning


def started(*roster: str) -> Event[Any]:
    """A session begins, with these on its roster; the roll opens a moment later."""
    enrolled = tuple(Enrolled(student_id, "x") for student_id in roster)
    data = SessionStarted(first_seq=2, session=a_session(), roster=enrolled, started_by="Ada", started_by_id="ada")
    return of_course(data, 2, f"/sessions/{SID}")


async def test_a_student_who_was_taken_off_the_roster_while_nothing_was_on_hears_of_no_beginning(world: World) -> None:
    """Nobody told of it then; the first start shows it."""
    gone, stays = await a_watcher(world, "student", "s2"), await a_watcher(world, "student", "s3")
    world.strangers = {"s2"}

    await world.say_of_the_course(started("s3"), an_opening(1))

    await until(lambda: turns(stays) == [(STARTED, SID)])
    await until(lambda: not world.course.watched.entering)
    await marker(world, stays)
    assert gone.heard == []


async def test_who_is_on_a_newer_roster_than_the_one_told_misses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The saga repeats a start with the roster of then; and session-service may be away for a moment."""
    monkeypatch.setattr("gateway.requests.AGAIN_SECONDS", 0.01)
    world.active = ["earlier"]
    ear = await a_watcher(world, "student", "s2")
    world.course_refusals = [Refused("timeout"), Unavailable("no broker")]

    await world.say_of_the_course(started("s3"), an_opening(1), a_close(2, "earlier"))

    await until(lambda: turns(ear) == [(STARTED, SID), (ENDED, "earlier")])
    assert not world.course.watched.entering


async def test_who_stops_watching_while_they_are_asked_about_does_not_come_back(world: World) -> None:
    ears = [await a_watcher(world, "student", name) for name in ("s2", "s3")]
    read, asked, answered = world.read_standing, asyncio.Event(), asyncio.Event()

    async def slowly(course_id: str, student_ids: Sequence[str]) -> Standing:
        asked.set()
        await answered.wait()
        return await read(course_id, student_ids)

    await looked_at(world)
    world.courses._read_standing = slowly
    await world.say_of_the_course(started("nobody"))
    await asked.wait()
    course = world.course.watched
    assert course.entering.keys() == {ear.member.sid for ear in ears}

    world.watchers.leave(COURSE, ears[0].member.sid)
    await world.leave(ears[1])
    hosted = world.course
    answered.set()

    await until(lambda: not hosted.looking)
    assert not (course.watchers or course.entering)
