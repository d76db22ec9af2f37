"""What is done with sessions as they stand on a timetable."""

from collections.abc import Sequence

from session_service import rules
from session_service.batches import Work
from session_service.handlers.pages import as_teacher, page
from session_service.handlers.turns import done_once
from session_service.rules import Session
from session_service.store import Unit
from session_service.views import read_session_cursor, session_changed, session_cursor, session_scheduled, view_session
from shared.errors import Refused
from shared.messages import (
    ChangeSession,
    CreateSession,
    ExplainNoRoll,
    ListSessions,
    News,
    ReadSession,
    SessionPage,
    SessionStored,
)
from shared.messages import Session as SessionView


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
            return SessionStored(session=view_session(made), news=News(course_id=made.course_id))
        session = rules.found_session(await sessions.created_before(*asked))
    rules.created_before(session, command)
    return SessionStored(session=view_session(session), news=News(course_id=session.course_id))


async def change_session(work: Work, command: ChangeSession) -> SessionStored:
    """Change a session that is not over; a redelivery changes nothing, also when it was changed again meanwhile."""
    session, changed = await done_once(work, command, lambda s: rules.change_session(s, command, work.now))
    if changed:
        work.emit(session_changed(session, command.actor), session.course_id)
    return SessionStored(session=view_session(session), news=rules.session_news(session))


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


def explain_no_roll(command: ExplainNoRoll, session: Session | None, enrolled: bool) -> Refused:
    """Say what the actor is to be told about a session that has no roll; always a refusal."""
    return rules.explain_no_roll(session, command, enrolled=enrolled)


async def sessions_seen(
    unit: Unit, commands: Sequence[ReadSession] | Sequence[ExplainNoRoll]
) -> list[tuple[Session | None, bool]]:
    """Read the sessions asked about, and whether each asker is enrolled in its course."""
    return await unit.sessions.seen([(command.session_id, command.actor.id) for command in commands])
