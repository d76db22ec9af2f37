"""What session-service does: one handler for each command and for each event it cares for."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from session_service import rules
from session_service.batches import Work, beginning, each, together
from session_service.rules import Course, Session
from session_service.store import Reports, Store, Unit
from session_service.views import (
    course_changed,
    read_session_cursor,
    session_cursor,
    session_ended,
    session_scheduled,
    session_started,
    view_course,
    view_session,
)
from shared.clock import Clock, parse_rfc3339
from shared.errors import Refused
from shared.live import Names
from shared.messages import (
    Actor,
    CoursePage,
    CourseStored,
    CreateSession,
    EndSession,
    Event,
    ExplainNoRoll,
    ListCourses,
    ListSessions,
    PutCourse,
    PutRoster,
    ReadCourse,
    ReadRoster,
    ReadSession,
    RollClosed,
    RollOpened,
    RosterPage,
    RosterStored,
    SessionPage,
    SessionStored,
    StartSession,
)
from shared.messages import Course as CourseView
from shared.messages import Session as SessionView
from shared.worker import Handler, Handlers, Outcome

log = structlog.get_logger()

T = TypeVar("T")


def table(store: Store, names: Names, clock: Clock) -> Handlers:
    """Say what handles what; this is the map of the service."""
    begin = beginning(store, names, clock)
    return {
        PutCourse: each(begin, put_course, in_order=by_course),
        ReadCourse: together(begin, courses_seen, read_course),
        ListCourses: each(begin, list_courses),
        PutRoster: each(begin, put_roster, in_order=by_course),
        ReadRoster: each(begin, read_roster),
        CreateSession: each(begin, create_session, in_order=by_course),
        ReadSession: together(begin, sessions_seen, read_session),
        ListSessions: each(begin, list_sessions),
        StartSession: each(begin, start_session, in_order=by_session),
        EndSession: each(begin, end_session, in_order=by_session),
        ExplainNoRoll: together(begin, sessions_seen, explain_no_roll),
        RollOpened: marking(store, "opened", lambda unit: unit.sessions.mark_opened),
        RollClosed: marking(store, "closed", lambda unit: unit.sessions.mark_closed),
    }


# Courses and rosters


async def put_course(work: Work, command: PutCourse) -> CourseStored:
    """Make or change a course. A redelivery after the making finds it made, and answers `created` False."""
    courses = work.unit.courses
    course = await courses.lock(command.course_id)
    if course is None:
        made = rules.put_course(None, command, work.now)
        if await courses.add(made):
            work.emit(course_changed(made), made.id)
            return CourseStored(course=view_course(made), created=True)
        course = await courses.lock(command.course_id)
    changed = rules.put_course(course, command, work.now)
    if changed != course:
        await courses.save(changed)
        work.emit(course_changed(changed), changed.id)
    return CourseStored(course=view_course(changed), created=False)


def read_course(command: ReadCourse, course: Course | None, enrolled: bool) -> CourseView:
    """Show a course to its staff and students."""
    course = rules.found_course(course)
    rules.check_reader(command.actor, course.teacher_ids, enrolled=enrolled)
    return view_course(course)


async def list_courses(work: Work, command: ListCourses) -> CoursePage:
    """List the courses that are the actor's own; to admins and services, all."""
    actor, courses = command.actor, work.unit.courses
    if rules.reads_everything(actor):
        found = await courses.all(command.cursor, command.limit + 1)
    else:
        found = await courses.own(actor.id, as_teacher(actor), command.cursor, command.limit + 1)
    items, cursor = page(found, command.limit, lambda course: course.id)
    return CoursePage(items=tuple(map(view_course, items)), next_cursor=cursor)


async def put_roster(work: Work, command: PutRoster) -> RosterStored:
    """Replace a roster by what changed on it. A redelivery finds nothing changed, and answers zeros."""
    courses = work.unit.courses
    course = rules.found_course(await courses.lock(command.course_id))
    rules.check_staff(command.actor, course.teacher_ids)
    rules.check_not_archived(course)
    change = rules.compare_rosters(await courses.roster(course.id), command.students)
    if change:
        await courses.change_roster(course.id, change)
    return RosterStored(added=len(change.added), updated=len(change.updated), removed=len(change.removed))


async def read_roster(work: Work, command: ReadRoster) -> RosterPage:
    """Show a page of a roster to the course's staff."""
    courses = work.unit.courses
    [(course, _)] = await courses.seen([(command.course_id, command.actor.id)])
    course = rules.found_course(course)
    rules.check_staff_reader(command.actor, course.teacher_ids)
    found = await courses.roster(course.id, command.cursor, command.limit + 1)
    items, cursor = page(found, command.limit, lambda student: student.student_id)
    return RosterPage(items=tuple(items), next_cursor=cursor)


# Sessions


async def create_session(work: Work, command: CreateSession) -> SessionStored:
    """Schedule a session; a redelivery, or another command with the same key and body, gets the first one."""
    sessions = work.unit.sessions
    asked = command.session_id, command.actor.id, command.idempotency_key
    session = await sessions.created_before(*asked)
    if session is None:
        course = rules.found_course(await work.unit.courses.lock(command.course_id))
        made = rules.create_session(course, command, work.now)
        if await sessions.add(made):
            work.emit(session_scheduled(made), made.course_id)
            return SessionStored(session=view_session(made), created=True)
        session = rules.found_session(await sessions.created_before(*asked))
    return SessionStored(session=view_session(session), created=rules.created_before(session, command))


def read_session(command: ReadSession, session: Session | None, enrolled: bool) -> SessionView:
    """Show a session to the staff and students of its course."""
    session = rules.found_session(session)
    rules.check_reader(command.actor, session.teacher_ids, enrolled=enrolled)
    return view_session(session)


async def list_sessions(work: Work, command: ListSessions) -> SessionPage:
    """List a course's sessions, or all that are the actor's own; to admins and services, all."""
    actor, sessions = command.actor, work.unit.sessions
    asked = command.status, read_session_cursor(command.cursor), command.limit + 1
    if command.course_id is not None:
        [(course, enrolled)] = await work.unit.courses.seen([(command.course_id, actor.id)])
        rules.check_reader(actor, rules.found_course(course).teacher_ids, enrolled=enrolled)
        found = await sessions.of_course(command.course_id, *asked)
    elif rules.reads_everything(actor):
        found = await sessions.all(*asked)
    else:
        found = await sessions.own(actor.id, as_teacher(actor), *asked)
    items, cursor = page(found, command.limit, session_cursor)
    return SessionPage(items=tuple(map(view_session, items)), next_cursor=cursor)


async def start_session(work: Work, command: StartSession) -> None:
    """Start a session, or say again that it was started; attendance-service answers once the roll is open.

    The course stays locked meanwhile: an enrolment is either on this roster or finds the session active.
    """
    courses, sessions = work.unit.courses, work.unit.sessions
    await courses.lock_of(command.session_id)
    session = rules.found_session(await sessions.lock(command.session_id))
    started = rules.start_session(session, command.actor, work.now)
    if started != session:
        await sessions.save_turn(started)
    roster = (await courses.enrolled([started.course_id]))[started.course_id]
    work.emit(session_started(started, roster), started.course_id, command.reply_to)


async def end_session(work: Work, command: EndSession) -> None:
    """End a session, or say again that it has ended; attendance-service answers once the roll is closed."""
    sessions = work.unit.sessions
    session = rules.found_session(await sessions.lock(command.session_id))
    ended = rules.end_session(session, command.actor, work.now)
    if ended != session:
        await sessions.save_turn(ended)
    work.emit(session_ended(ended), ended.course_id, command.reply_to)


def explain_no_roll(command: ExplainNoRoll, session: Session | None, enrolled: bool) -> Refused:
    """Say what the actor is to be told about a session that has no roll; always a refusal."""
    return rules.explain_no_roll(session, command, enrolled=enrolled)


# What the rolls report


def marking(store: Store, what: str, mark: Callable[[Unit], Callable[[Reports], Awaitable[Sequence[str]]]]) -> Handler:
    """Make the handler that notes when rolls opened or closed; what is known already stays as it is."""

    async def mark_rolls(events: Sequence[Event[RollOpened] | Event[RollClosed]]) -> Outcome:
        reports = [(event.data.session_id, parse_rfc3339(event.time)) for event in events]
        async with store.unit() as unit:
            unknown = await mark(unit)(reports)
        for session_id in unknown:
            log.warning("roll.of_no_session", what=what, session_id=session_id)
        return Outcome()

    return mark_rolls


# Looking up and putting in order


async def courses_seen(unit: Unit, commands: Sequence[ReadCourse]) -> list[tuple[Course | None, bool]]:
    """Read the courses asked about, and whether each asker is enrolled."""
    return await unit.courses.seen([(command.course_id, command.actor.id) for command in commands])


async def sessions_seen(
    unit: Unit, commands: Sequence[ReadSession] | Sequence[ExplainNoRoll]
) -> list[tuple[Session | None, bool]]:
    """Read the sessions asked about, and whether each asker is enrolled in its course."""
    return await unit.sessions.seen([(command.session_id, command.actor.id) for command in commands])


InOrder = TypeVar("InOrder", PutCourse, PutRoster, CreateSession)
Turning = TypeVar("Turning", StartSession, EndSession)


async def by_course(unit: Unit, commands: Sequence[InOrder]) -> Sequence[InOrder]:
    """Sort by course; what concerns one course stays as it came."""
    return sorted(commands, key=lambda command: command.course_id)


async def by_session(unit: Unit, commands: Sequence[Turning]) -> Sequence[Turning]:
    """Sort by course and session."""
    courses = await unit.sessions.courses_of({command.session_id for command in commands})
    return sorted(commands, key=lambda command: (courses.get(command.session_id, ""), command.session_id))


def as_teacher(actor: Actor) -> str | None:
    """The id under which courses may list the actor as a teacher, None when they are none."""
    return actor.id if actor.role == "teacher" else None


def page(found: Sequence[T], limit: int, cursor: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """Cut what was found, one beyond `limit`, to a page; with the next one's cursor where there is one."""
    items = found[:limit]
    return items, cursor(items[-1]) if len(found) > limit else None
