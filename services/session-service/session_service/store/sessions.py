"""The SQL of sessions, and of what their rolls have reported."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from msgspec import json
from sqlalchemy import Row, TextClause, text

from session_service.rules import End, Session, Turn
from session_service.store.courses import OWN_COURSES
from session_service.store.queries import Asked, Queries
from shared.messages import CheckIn, SessionStatus

# What a session has from its creation on, and what comes with its start and end.
_NEW_SESSION = (
    *("id", "course_id", "title", "description", "status", "date", "start_time", "end_time", "time_zone"),
    *("starts_at", "ends_at", "meeting_link", "check_in", "version", "created_by_id", "idempotency_key"),
    *("fingerprint", "created_at", "updated_at"),
)
_TURNS = (
    *("started_at", "started_version", "started_by", "started_by_id"),
    *("ended_at", "ended_version", "ended_by", "ended_by_id", "ended_cause"),
)
_SESSION = ", ".join(f"s.{name}" for name in (*_NEW_SESSION, *_TURNS, "roll_opened_at", "roll_closed_at") if name != "check_in")
_SESSION += ", CAST(s.check_in AS text) AS check_in, c.teacher_ids"
_SESSIONS = "sessions.sessions AS s JOIN sessions.courses AS c ON c.id = s.course_id"

# The courses of these sessions. A session never changes its course, so this needs no lock.
_COURSES_OF = text("SELECT id, course_id FROM sessions.sessions WHERE id = ANY(CAST(:ids AS text[]))")
# A session, kept from changing until the commit, with its course's teachers.
_LOCK = text(f"SELECT {_SESSION} FROM {_SESSIONS} WHERE s.id = :id FOR NO KEY UPDATE OF s")
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
# A session that was started or ended.
_SAVE_TURN = text(
    f"""UPDATE sessions.sessions SET status = :status, version = :version, updated_at = :updated_at,
        {", ".join(f"{name} = :{name}" for name in _TURNS)} WHERE id = :id"""
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


def _mark_rolls(column: str) -> TextClause:
    return text(
        f"""WITH reported AS (
            SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:times AS timestamptz[])) AS r (id, at)),
        found AS (SELECT id, {column} FROM sessions.sessions WHERE id = ANY(CAST(:ids AS text[]))
            ORDER BY course_id, id FOR NO KEY UPDATE),
        marked AS (UPDATE sessions.sessions AS s
            SET {column} = (SELECT min(r.at) FROM reported AS r WHERE r.id = s.id)
            WHERE s.id IN (SELECT id FROM found WHERE {column} IS NULL))
        SELECT DISTINCT id FROM reported WHERE id NOT IN (SELECT id FROM found)"""
    )


# Notes once when these rolls opened (closed), and tells which of the sessions do not exist.
_MARK_OPENED = _mark_rolls("roll_opened_at")
_MARK_CLOSED = _mark_rolls("roll_closed_at")
# Takes sessions whose roll has not answered, and stamps them: after `wait` the first time, then after as long
# again as it has been silent, at most `longest`. Those that another replica is repeating are passed over.
_LAST_TOLD = "greatest(repeated_at, ended_at, started_at)"
_TAKE_UNREPORTED = text(
    f"""WITH due AS (
        SELECT id FROM sessions.sessions
        WHERE (status = 'active' AND roll_opened_at IS NULL
                OR status = 'completed' AND roll_closed_at IS NULL)
            AND CAST(:now AS timestamptz) - {_LAST_TOLD} >= least(CAST(:longest AS interval),
                greatest(CAST(:wait AS interval), {_LAST_TOLD} - coalesce(ended_at, started_at)))
        ORDER BY {_LAST_TOLD} LIMIT CAST(:limit AS int) FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE sessions.sessions AS s SET repeated_at = CAST(:now AS timestamptz)
    FROM due, sessions.courses AS c WHERE s.id = due.id AND c.id = s.course_id RETURNING {_SESSION}"""
)

Place = tuple[datetime, str]
"""Where a page of sessions begins: after the session with this start and id."""
Reports = Sequence[tuple[str, datetime]]
"""(session id, time) pairs; at least one."""


class Sessions(Queries):
    """Sessions, in one transaction."""

    async def courses_of(self, session_ids: Collection[str]) -> dict[str, str]:
        """Read which course each of these sessions belongs to; what does not exist is left out."""
        return {row.id: row.course_id for row in await self._all(_COURSES_OF, ids=list(session_ids))}

    async def lock(self, session_id: str) -> Session | None:
        """Read a session and keep it from changing until the commit; a course is locked before it."""
        row = await self._one(_LOCK, id=session_id)
        return None if row is None else _session(row)

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

    async def save_turn(self, session: Session) -> None:
        """Write a session that was started or ended."""
        started, ended = session.started, session.ended
        await self._do(
            _SAVE_TURN,
            id=session.id,
            status=session.status,
            version=session.version,
            updated_at=session.updated_at,
            started_at=started and started.at,
            started_version=started and started.version,
            started_by=started and started.by,
            started_by_id=started and started.by_id,
            ended_at=ended and ended.at,
            ended_version=ended and ended.version,
            ended_by=ended and ended.by,
            ended_by_id=ended and ended.by_id,
            ended_cause=ended and ended.cause,
        )

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

    async def mark_opened(self, reports: Reports) -> list[str]:
        """Note when rolls opened, where not known yet; return the ids of sessions that do not exist."""
        return await self._mark(_MARK_OPENED, reports)

    async def mark_closed(self, reports: Reports) -> list[str]:
        """Note when rolls closed, where not known yet; return the ids of sessions that do not exist."""
        return await self._mark(_MARK_CLOSED, reports)

    async def take_unreported(self, now: datetime, *, wait: timedelta, longest: timedelta, limit: int) -> list[Session]:
        """Take sessions whose roll has been silent too long; no other replica has them until the commit."""
        rows = await self._all(_TAKE_UNREPORTED, now=now, wait=wait, longest=longest, limit=limit)
        return [_session(row) for row in rows]

    async def _mark(self, statement: TextClause, reports: Reports) -> list[str]:
        ids, times = zip(*reports, strict=True)
        return [row.id for row in await self._all(statement, ids=list(ids), times=list(times))]

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
    started = row.started_at and Turn(
        at=row.started_at, version=row.started_version, by=row.started_by, by_id=row.started_by_id
    )
    ended = row.ended_at and End(
        at=row.ended_at,
        version=row.ended_version,
        by=row.ended_by,
        by_id=row.ended_by_id,
        cause=row.ended_cause,
    )
    return Session(
        **{name: getattr(row, name) for name in _NEW_SESSION if name != "check_in"},
        check_in=json.decode(row.check_in, type=CheckIn),
        teacher_ids=tuple(row.teacher_ids),
        started=started,
        ended=ended,
        roll_opened_at=row.roll_opened_at,
        roll_closed_at=row.roll_closed_at,
    )
