"""The SQL of sessions, and of what their rolls have reported."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from msgspec import json, structs
from sqlalchemy import Row, TextClause, text

from session_service.rules import End, Reopening, Session, Turn
from session_service.store.courses import OWN_COURSES
from session_service.store.queries import Asked, Queries
from shared.messages import (
    CancelSession,
    ChangeSession,
    CheckIn,
    EndSession,
    ReopenSession,
    SessionStatus,
    StartSession,
)

# What a session has from its creation on, what comes with its turns, and what may change on the way.
_NEW_SESSION = (
    *("id", "course_id", "title", "description", "status", "date", "start_time", "end_time", "time_zone"),
    *("starts_at", "ends_at", "meeting_link", "check_in", "version", "created_by_id", "idempotency_key"),
    *("fingerprint", "created_at", "updated_at"),
)
_TURNS = (
    *("started_at", "started_version", "started_by", "started_by_id"),
    *("reopened_at", "reopened_version", "reopened_by", "reopened_by_id", "reopened_reason"),
    *("ended_at", "ended_version", "ended_by", "ended_by_id", "ended_cause"),
    "roll_version",
)
_CHANGING = (
    *("title", "description", "status", "date", "start_time", "end_time", "time_zone", "starts_at", "ends_at"),
    *("meeting_link", "check_in", "version", "updated_at", *_TURNS, "turn_version"),
)
_SESSION = ", ".join(f"s.{name}" for name in (*_NEW_SESSION, *_TURNS) if name != "check_in")
_SESSION += ", CAST(s.check_in AS text) AS check_in, c.teacher_ids, c.version AS course_version"
_SESSIONS = "sessions.sessions AS s JOIN sessions.courses AS c ON c.id = s.course_id"

# The courses of these sessions. A session never changes its course, so this needs no lock.
_COURSES_OF = text("SELECT id, course_id FROM sessions.sessions WHERE id = ANY(CAST(:ids AS text[]))")
# A session, kept from changing until the commit, with its course's teachers.
_LOCK = text(f"SELECT {_SESSION} FROM {_SESSIONS} WHERE s.id = :id FOR NO KEY UPDATE OF s")
# The sessions of a course that are active, kept from changing in the order of their ids.
_LOCK_ACTIVE = text(
    f"""SELECT {_SESSION} FROM {_SESSIONS} WHERE s.course_id = :course_id AND s.status = 'active'
    ORDER BY s.id FOR NO KEY UPDATE OF s"""
)
# For each (session, actor) asked about, in that order: the session, and whether the actor is enrolled.
_SEEN = text(
    f"""SELECT {_SESSION}, EXISTS (SELECT FROM sessions.enrolments AS e
        WHERE e.course_id = s.course_id AND e.student_id = asked.actor_id) AS enrolled
    FROM unnest(CAST(:sessions AS text[]), CAST(:actors AS text[]))
        WITH ORDINALITY AS asked (session_id, actor_id, n)
    LEFT JOIN ({_SESSIONS}) ON s.id = asked.session_id ORDER BY asked.n"""
)
# What an earlier delivery of this command made, or an earlier command with the same key.
_CREATED_BEFORE = text(
    f"""SELECT {_SESSION} FROM {_SESSIONS}
    WHERE s.id = :id OR (s.created_by_id = :creator AND s.idempotency_key = :key)
    ORDER BY s.id = :id DESC LIMIT 1"""
)
# A new session; nothing when it is there already, or another one with the same key.
_ADD = text(
    f"""INSERT INTO sessions.sessions ({", ".join(_NEW_SESSION)})
    VALUES ({", ".join(f":{name}" for name in _NEW_SESSION).replace(":check_in", "CAST(:check_in AS jsonb)")})
    ON CONFLICT DO NOTHING RETURNING id"""
)
# A session that changed.
_SAVE = text(
    f"""UPDATE sessions.sessions
    SET {", ".join(f"{name} = :{name}" for name in _CHANGING).replace(":check_in", "CAST(:check_in AS jsonb)")}
    WHERE id = :id"""
)
# As what kind of command one was done, under this id and by this actor, and that it was.
_DONE_AS = text(
    """SELECT kind FROM sessions.done
    WHERE session_id = :session_id AND actor_id = :actor_id AND command_id = :command_id"""
)
_NOTE_DONE = text(
    """INSERT INTO sessions.done (session_id, actor_id, command_id, kind)
    VALUES (:session_id, :actor_id, :command_id, :kind)"""
)
# Whether a course has a session with a roll, and how many are still to come or on.
_ANY_STARTED = text(
    "SELECT EXISTS (SELECT FROM sessions.sessions WHERE course_id = :course_id AND started_at IS NOT NULL) AS found"
)
_REMAINING = text(
    """SELECT count(*) AS remaining FROM sessions.sessions
    WHERE course_id = :course_id AND status IN ('scheduled', 'active')"""
)


def _sessions_page(where: str) -> TextClause:
    return text(
        f"""SELECT {_SESSION} FROM {_SESSIONS}
        WHERE {where} AND (CAST(:status AS text) IS NULL OR s.status = :status)
            AND (CAST(:after_at AS timestamptz) IS NULL
                OR (s.starts_at, s.id) < (CAST(:after_at AS timestamptz), CAST(:after_id AS text)))
        ORDER BY s.starts_at DESC, s.id DESC LIMIT CAST(:limit AS int)"""
    )


# A page of sessions, newest first: of one course, of all, and of one's own courses.
_COURSE_SESSIONS = _sessions_page("s.course_id = :course_id")
_ALL_SESSIONS = _sessions_page("TRUE")
_OWN_SESSIONS = _sessions_page(f"s.course_id IN {OWN_COURSES}")


# Notes how far rolls have followed their sessions, which never goes back, and tells which sessions do not exist.
# Locks them in the order of all.
_MARK_REPORTED = text(
    """WITH reported AS (
        SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:versions AS int[])) AS r (id, version)),
    found AS (SELECT id FROM sessions.sessions WHERE id = ANY(CAST(:ids AS text[]))
        ORDER BY course_id, id FOR NO KEY UPDATE),
    marked AS (UPDATE sessions.sessions AS s SET roll_version = r.version
        FROM found JOIN reported AS r USING (id) WHERE s.id = found.id AND s.roll_version < r.version)
    SELECT id FROM reported WHERE id NOT IN (SELECT id FROM found)"""
)
# Takes sessions whose roll has not reported their newest turn, and stamps them: after `wait` the first time, then
# after as long again as it has been silent, at most `longest`. Those that another replica is repeating are passed over.
_LAST_TURN = "greatest(started_at, reopened_at, ended_at)"
_LAST_TOLD = "greatest(repeated_at, started_at, reopened_at, ended_at)"
_TAKE_UNREPORTED = text(
    f"""WITH due AS (
        SELECT id FROM sessions.sessions
        WHERE turn_version > roll_version
            AND CAST(:now AS timestamptz) - {_LAST_TOLD} >= least(CAST(:longest AS interval),
                greatest(CAST(:wait AS interval), {_LAST_TOLD} - {_LAST_TURN}))
        ORDER BY {_LAST_TOLD} LIMIT CAST(:limit AS int) FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE sessions.sessions AS s SET repeated_at = CAST(:now AS timestamptz)
    FROM due, sessions.courses AS c WHERE s.id = due.id AND c.id = s.course_id RETURNING {_SESSION}"""
)
# Takes active sessions whose closing time has come, as `rules.closing_time` says; those that somebody else has
# locked are passed over. Lengths are compared, not added to times: a day added is not always 24 hours.
_TAKE_DUE = text(
    f"""SELECT {_SESSION} FROM {_SESSIONS}
    WHERE s.status = 'active' AND s.ends_at <= CAST(:planned_by AS timestamptz)
        AND CAST(:now AS timestamptz) - greatest(s.started_at, s.reopened_at) >= s.ends_at - s.starts_at
    ORDER BY s.ends_at LIMIT CAST(:limit AS int) FOR NO KEY UPDATE OF s SKIP LOCKED"""
)

DoneOnce: TypeAlias = StartSession | EndSession | ReopenSession | CancelSession | ChangeSession
"""The commands that are remembered: done once, they change nothing when they come again."""
Place: TypeAlias = tuple[datetime, str]
"""Where a page of sessions begins: after the session with this start and id."""


class Sessions(Queries):
    """Sessions, in one transaction."""

    async def courses_of(self, session_ids: Collection[str]) -> dict[str, str]:
        """Read which course each of these sessions belongs to; what does not exist is left out."""
        return {row.id: row.course_id for row in await self._all(_COURSES_OF, ids=list(session_ids))}

    async def lock(self, session_id: str) -> Session | None:
        """Read a session and keep it from changing until the commit; a course is locked before it."""
        row = await self._one(_LOCK, id=session_id)
        return None if row is None else _session(row)

    async def lock_active(self, course_id: str) -> list[Session]:
        """Read a course's active sessions and keep them from changing until the commit; the course must be locked.

        No other becomes active meanwhile: who starts or reopens one locks the course.
        """
        return [_session(row) for row in await self._all(_LOCK_ACTIVE, course_id=course_id)]

    async def seen(self, asked: Asked) -> list[tuple[Session | None, bool]]:
        """Read each session asked about, in that order, and whether who asks is enrolled in its course."""
        sessions, actors = zip(*asked, strict=True)
        rows = await self._all(_SEEN, sessions=list(sessions), actors=list(actors))
        return [(None if row.id is None else _session(row), row.enrolled) for row in rows]

    async def created_before(self, session_id: str, creator: str, key: str | None) -> Session | None:
        """Read the session with this id, or else the one that this creator made with this idempotency key."""
        row = await self._one(_CREATED_BEFORE, id=session_id, creator=creator, key=key)
        return None if row is None else _session(row)

    async def add(self, session: Session) -> bool:
        """Write a new session; False, and nothing written, when its id or key has just been used."""
        columns = {name: getattr(session, name) for name in _NEW_SESSION}
        columns["check_in"] = json.encode(session.check_in).decode()
        return await self._one(_ADD, **columns) is not None

    async def save(self, session: Session) -> None:
        """Write a session that changed; it must be locked."""
        columns = {name: getattr(session, name) for name in _CHANGING if name not in _TURNS}
        columns["check_in"] = json.encode(session.check_in).decode()
        await self._do(_SAVE, id=session.id, **columns, **_turn_columns(session))

    async def done_as(self, command: DoneOnce) -> str | None:
        """Say as what kind of command this actor's command with this id was done before, None when it was not."""
        row = await self._one(_DONE_AS, **_done_key(command))
        return None if row is None else row.kind

    async def note_done(self, command: DoneOnce) -> None:
        """Remember for ever that a command was done; its session must be locked, and the command not noted yet."""
        await self._do(_NOTE_DONE, kind=type(command).__name__, **_done_key(command))

    async def any_started(self, course_id: str) -> bool:
        """Say whether the course has a session that was ever started."""
        row = await self._one(_ANY_STARTED, course_id=course_id)
        return row is not None and row.found

    async def remaining(self, course_id: str) -> int:
        """Count the course's sessions that are scheduled or active."""
        row = await self._one(_REMAINING, course_id=course_id)
        return 0 if row is None else row.remaining

    async def of_course(self, course_id: str, status: SessionStatus | None, after: Place | None, limit: int) -> list[Session]:
        """Read a page of a course's sessions, newest first."""
        return await self._page(_COURSE_SESSIONS, status, after, limit, course_id=course_id)

    async def all(self, status: SessionStatus | None, after: Place | None, limit: int) -> list[Session]:
        """Read a page of all sessions, newest first."""
        return await self._page(_ALL_SESSIONS, status, after, limit)

    async def own(
        self, actor: str, teacher: str | None, status: SessionStatus | None, after: Place | None, limit: int
    ) -> list[Session]:
        """Read a page of sessions of the courses where `actor` is enrolled, or which `teacher` teaches."""
        return await self._page(_OWN_SESSIONS, status, after, limit, actor=actor, teacher=teacher)

    async def mark_reported(self, versions: Mapping[str, int]) -> list[str]:
        """Note the newest version of each of these sessions that its roll knows; return the ids of those that do not exist.

        What was noted never goes back. The sessions are locked, in the order of all.
        """
        rows = await self._all(_MARK_REPORTED, ids=list(versions), versions=list(versions.values()))
        return [row.id for row in rows]

    async def take_unreported(self, now: datetime, *, wait: timedelta, longest: timedelta, limit: int) -> list[Session]:
        """Take sessions whose roll has been silent too long; no other replica has them until the commit."""
        rows = await self._all(_TAKE_UNREPORTED, now=now, wait=wait, longest=longest, limit=limit)
        return [_session(row) for row in rows]

    async def take_due(self, now: datetime, *, grace: timedelta, limit: int) -> list[Session]:
        """Take active sessions whose closing time has come; no other replica has them until the commit."""
        rows = await self._all(_TAKE_DUE, now=now, planned_by=now - grace, limit=limit)
        return [_session(row) for row in rows]

    async def _page(
        self,
        statement: TextClause,
        status: SessionStatus | None,
        after: Place | None,
        limit: int,
        **where: str | None,
    ) -> list[Session]:
        at, session_id = after or (None, None)
        rows = await self._all(statement, status=status, after_at=at, after_id=session_id, limit=limit, **where)
        return [_session(row) for row in rows]


def _session(row: Row[Any]) -> Session:
    def turn(name: str) -> dict[str, Any]:
        return {field: getattr(row, f"{name}_{field}") for field in ("at", "version", "by", "by_id")}

    return Session(
        **{name: getattr(row, name) for name in _NEW_SESSION if name != "check_in"},
        check_in=json.decode(row.check_in, type=CheckIn),
        teacher_ids=tuple(row.teacher_ids),
        course_version=row.course_version,
        started=Turn(**turn("started")) if row.started_at else None,
        reopened=Reopening(**turn("reopened"), reason=row.reopened_reason) if row.reopened_at else None,
        ended=End(**turn("ended"), cause=row.ended_cause) if row.ended_at else None,
        roll_version=row.roll_version,
    )


def _turn_columns(session: Session) -> dict[str, Any]:
    columns: dict[str, Any] = dict.fromkeys(_TURNS)
    columns["roll_version"] = session.roll_version
    for name, turn in (("started", session.started), ("reopened", session.reopened), ("ended", session.ended)):
        if turn is not None:
            columns |= {f"{name}_{field}": value for field, value in structs.asdict(turn).items()}
    return columns


def _done_key(command: DoneOnce) -> dict[str, str]:
    return {"session_id": command.session_id, "actor_id": command.actor.id, "command_id": command.command_id}
