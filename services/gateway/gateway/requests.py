"""Everything a caller may ask, whichever way they came: a Socket.IO event and its HTTP twin become the same command here."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Final, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from gateway.calls import Calls
from gateway.payloads import CoursePayload, SessionPayload
from shared.clock import Clock
from shared.errors import NO_ROLL, Refused
from shared.messages import (
    Actor,
    ChangesRead,
    CheckIn,
    Course,
    CoursePage,
    CourseStored,
    CreateSession,
    EndSession,
    ExplainNoRoll,
    JoinRoll,
    ListCourses,
    ListSessions,
    PutCourse,
    PutRoster,
    ReadChanges,
    ReadCourse,
    ReadRoll,
    ReadRoster,
    ReadSession,
    RollJoined,
    RollRead,
    RosterPage,
    RosterStored,
    Session,
    SessionPage,
    SessionStatus,
    SessionStored,
    StartSession,
    Student,
)

SECONDS: Final = 2.0
"""How long a command may wait to be begun."""
LONG_SECONDS: Final = 30.0
"""The same for rosters and reports."""
GATEWAY: Final = Actor("gateway", "gateway", "service")
"""Who asks when the gateway itself must know."""

T = TypeVar("T")


class Requests:
    """Asks the services on behalf of callers. Every method raises Refused with a code of the contract."""

    def __init__(self, calls: Calls, clock: Clock) -> None:
        self._calls = calls
        self._clock = clock
        self._session_ids = _session_ids()

    async def put_course(self, actor: Actor, course_id: str, payload: CoursePayload) -> CourseStored:
        """Make or change a course."""
        command = PutCourse(
            course_id=course_id,
            title=payload.title,
            teacher_ids=payload.teacher_ids,
            time_zone=payload.time_zone,
            **self._envelope(actor),
        )
        return await self._calls.ask(command, CourseStored)

    async def read_course(self, actor: Actor, course_id: str) -> Course:
        """Read a course."""
        return await self._calls.ask(ReadCourse(course_id=course_id, **self._envelope(actor)), Course)

    async def list_courses(self, actor: Actor, limit: int, cursor: str | None) -> CoursePage:
        """List one's own courses."""
        return await self._calls.ask(ListCourses(limit=limit, cursor=cursor, **self._envelope(actor)), CoursePage)

    async def put_roster(self, actor: Actor, course_id: str, students: tuple[Student, ...]) -> RosterStored:
        """Replace a course's roster."""
        command = PutRoster(course_id=course_id, students=students, **self._envelope(actor, seconds=LONG_SECONDS))
        return await self._calls.ask(command, RosterStored)

    async def read_roster(self, actor: Actor, course_id: str, limit: int, cursor: str | None) -> RosterPage:
        """Read a page of a course's roster."""
        command = ReadRoster(course_id=course_id, limit=limit, cursor=cursor, **self._envelope(actor))
        return await self._calls.ask(command, RosterPage)

    async def create_session(
        self, actor: Actor, payload: SessionPayload, *, idempotency_key: str | None, fingerprint: str
    ) -> SessionStored:
        """Schedule a session."""
        now = self._clock()
        command = CreateSession(
            session_id=self._session_ids(now),
            course_id=payload.course_id,
            title=payload.title,
            description=payload.description,
            date=payload.date,
            start_time=payload.start_time,
            end_time=payload.end_time,
            time_zone=payload.time_zone,
            meeting_link=payload.meeting_link,
            check_in=payload.check_in or CheckIn(),
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
            **self._envelope(actor),
        )
        return await self._calls.ask(command, SessionStored)

    async def read_session(self, actor: Actor, session_id: str) -> Session:
        """Read a session."""
        return await self._calls.ask(ReadSession(session_id=session_id, **self._envelope(actor)), Session)

    async def list_sessions(
        self, actor: Actor, course_id: str | None, status: SessionStatus | None, limit: int, cursor: str | None
    ) -> SessionPage:
        """List sessions."""
        command = ListSessions(course_id=course_id, status=status, limit=limit, cursor=cursor, **self._envelope(actor))
        return await self._calls.ask(command, SessionPage)

    async def start(self, actor: Actor, session_id: str, command_id: str | None = None) -> RollRead:
        """Start a session; return once its roll is open."""
        command = StartSession(session_id=session_id, **self._envelope(actor, command_id))
        return await self._calls.ask(command, RollRead)

    async def end(self, actor: Actor, session_id: str, command_id: str | None = None) -> RollRead:
        """End a session; return once its roll is closed."""
        command = EndSession(session_id=session_id, **self._envelope(actor, command_id))
        return await self._calls.ask(command, RollRead)

    async def join(
        self, actor: Actor, session_id: str, command_id: str | None = None, *, received_at: datetime | None = None
    ) -> RollJoined:
        """Check the actor in, as of `received_at`: when the join reached this gateway."""
        command = JoinRoll(session_id=session_id, **self._envelope(actor, command_id))
        command = replace(command, received_at=received_at or command.received_at)
        try:
            return await self._calls.ask(command, RollJoined)
        except Refused as refusal:
            raise await self._explained(refusal, actor, session_id, for_staff=False) from None

    async def read_roll(self, actor: Actor, session_id: str, command_id: str | None = None) -> RollRead:
        """Read a whole roll."""
        command = ReadRoll(session_id=session_id, **self._envelope(actor, command_id))
        try:
            return await self._calls.ask(command, RollRead)
        except Refused as refusal:
            raise await self._explained(refusal, actor, session_id, for_staff=True) from None

    async def read_changes(self, session_id: str, since_seq: int) -> ChangesRead:
        """Read what this gateway missed of a roll."""
        command = ReadChanges(session_id=session_id, since_seq=since_seq, **self._envelope(GATEWAY))
        return await self._calls.ask(command, ChangesRead)

    async def _explained(self, refusal: Refused, actor: Actor, session_id: str, *, for_staff: bool) -> Refused:
        """Where attendance-service knows no roll, let session-service say why."""
        if refusal.code != NO_ROLL:
            return refusal
        command = ExplainNoRoll(session_id=session_id, for_staff=for_staff, **self._envelope(actor))
        try:
            await self._calls.ask(command, Session)
        except Refused as explanation:
            return explanation
        raise Refused("internal")

    def _envelope(self, actor: Actor, command_id: str | None = None, *, seconds: float = SECONDS) -> dict[str, Any]:
        now = self._clock()
        return {
            "command_id": command_id or uuid4().hex,
            "actor": actor,
            "received_at": now,
            "deadline": now + timedelta(seconds=seconds),
        }


def _session_ids() -> Callable[[datetime], str]:
    """Make what makes session ids: 24 hex characters, of the second, this process and a counter, so ordered by time."""
    process = os.urandom(5).hex()
    numbers = count(int.from_bytes(os.urandom(2)))
    return lambda now: f"{int(now.timestamp()):08x}{process}{next(numbers) % 2**24:06x}"
