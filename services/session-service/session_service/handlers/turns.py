"""What is done in a session's life: start, end, reopen, cancel.

All but the last are answered by attendance-service, once the roll has followed: the return address goes on with the event.
What was done before is not done again; the newest turn is told again instead, so that whoever asks is answered.
"""

from collections.abc import Callable

from session_service import rules
from session_service.batches import Work
from session_service.rules import Roster, Session
from session_service.store import DoneOnce
from session_service.views import last_turn, session_cancelled, view_session
from shared.messages import CancelSession, EndSession, ReopenSession, SessionStored, StartSession


async def start_session(work: Work, command: StartSession) -> None:
    """Start a session, or say again what became of it.

    The course stays locked meanwhile: an enrolment is either on this roster or finds the session active.
    """
    await work.unit.courses.lock_of(command.session_id)
    session, _ = await done_once(work, command, lambda s: rules.start_session(s, command.actor, work.now))
    await _tell_last_turn(work, command, session)


async def end_session(work: Work, command: EndSession) -> None:
    """End a session, or say again what became of it."""
    session, _ = await done_once(work, command, lambda s: rules.end_session(s, command.actor, work.now))
    await _tell_last_turn(work, command, session)


async def reopen_session(work: Work, command: ReopenSession) -> None:
    """Open a session again, or say again what became of it; the course stays locked as for a start."""
    await work.unit.courses.lock_of(command.session_id)
    session, _ = await done_once(work, command, lambda s: rules.reopen_session(s, command.actor, command.reason, work.now))
    await _tell_last_turn(work, command, session)


async def cancel_session(work: Work, command: CancelSession) -> SessionStored:
    """Cancel a session; a redelivery finds it cancelled. Its roll, where it has one, closes after the answer."""
    session, changed = await done_once(work, command, lambda s: rules.cancel_session(s, command.actor, work.now))
    if changed:
        work.emit(session_cancelled(session), session.course_id)
    return SessionStored(session=view_session(session), news=rules.session_news(session))


async def done_once(work: Work, command: DoneOnce, decide: Callable[[Session], Session]) -> tuple[Session, bool]:
    """Do to a session what `decide` makes of it, unless this command did so before; return it, and whether it changed.

    A command that changed nothing is remembered too: sent again after the opposite was done, it would change something.
    """
    sessions = work.unit.sessions
    session = rules.found_session(await sessions.lock(command.session_id))
    # Looked at each time: who is no teacher of the course any more is not answered with its roll.
    rules.check_staff(command.actor, session.teacher_ids)
    if rules.done_before(await sessions.done_as(command), command):
        return session, False
    decided = decide(session)
    if decided != session:
        rules.check_not_refused_before(session, command)
        await sessions.save(decided)
    await sessions.note_done(command)
    return decided, decided != session


async def _tell_last_turn(work: Work, command: StartSession | EndSession | ReopenSession, session: Session) -> None:
    roster = Roster()
    if session.status == "active":
        roster = (await work.unit.courses.enrolled([session.course_id]))[session.course_id]
    work.emit(last_turn(session, roster), session.course_id, command.reply_to)
