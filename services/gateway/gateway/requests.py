"""Everything a caller may ask, whichever way they came: a Socket.IO event and its HTTP twin become the same command here."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from itertools import chain, count, repeat
from typing import Any, Final, Self, TypeVar

import structlog

from gateway.calls import Calls
from gateway.payloads import (
    BulkPayload,
    CoursePayload,
    MarkPayload,
    SessionPatch,
    SessionPayload,
    StudentBody,
    StudentCommandPayload,
)
from shared.clock import Clock
from shared.errors import NO_ROLL, Refused, Unavailable
from shared.messages import (
    ActiveSessions,
    Actor,
    ArchiveCourse,
    AttendanceCommand,
    AwaitNews,
    CancelSession,
    ChangeSession,
    ChangesRead,
    CheckIn,
    ClearMark,
    Course,
    CoursePage,
    CourseStored,
    CourseSummary,
    CreateSession,
    EndSession,
    EnrolStudent,
    ExplainNoRoll,
    Heard,
    HistoryPage,
    JoinRoll,
    ListCourses,
    ListSessions,
    Mark,
    MarkRecord,
    MarkRecords,
    MarksStored,
    MarkStored,
    News,
    Outline,
    OwnRecords,
    PutCourse,
    PutRoster,
    ReadActiveSessions,
    ReadChanges,
    ReadCourse,
    ReadHistory,
    ReadOutline,
    ReadOwnRecords,
    ReadRoll,
    ReadRoster,
    ReadSession,
    ReadStanding,
    RemoveStudent,
    ReopenSession,
    RollJoined,
    RollRead,
    RollSynced,
    RosterPage,
    RosterStored,
    Session,
    SessionPage,
    SessionStatus,
    SessionStored,
    Standing,
    StartSession,
    Student,
    Submission,
    SubmitRoll,
    SummarizeCourse,
    SyncRoll,
)

SECONDS: Final = 2.0
"""How long a command may wait to be begun."""
LONG_SECONDS: Final = 30.0
"""The same for rosters and reports."""
AGAIN_SECONDS: Final = 1.0
"""After that the gateway asks again for what it must know and could not be told."""
GATEWAY: Final = Actor("gateway", "gateway", "service")
"""Who asks when the gateway itself must know."""

_A_WHILE: Final = timedelta(seconds=SECONDS)
_PAUSES: Final = (0.005, 0.01, 0.02, 0.05)

log = structlog.get_logger()
T = TypeVar("T")


class Requests:
    """Asks the services on behalf of callers. Every method raises Refused with a code of the contract."""

    def __init__(self, calls: Calls, clock: Clock, ids: "_Ids | None" = None, received_at: datetime | None = None) -> None:
        self._calls = calls
        self._clock = clock
        self._ids = ids or _Ids()
        self._received_at = received_at

    def received(self, at: datetime) -> Self:
        """Ask on behalf of what reached this gateway at that time: the time it has counts from then."""
        return type(self)(self._calls, self._clock, self._ids, at)

    def seconds_left(self) -> float:
        """Tell how much of the time is left of what was `received`; of what comes now, all."""
        now = self._clock()
        return ((self._received_at or now) - now).total_seconds() + SECONDS

    async def put_course(self, actor: Actor, course_id: str, payload: CoursePayload) -> CourseStored:
        """Make or change a course."""
        command = PutCourse(
            course_id=course_id,
            title=payload.title,
            teacher_ids=payload.teacher_ids,
            time_zone=payload.time_zone,
            **self._envelope(actor),
        )
        stored = await self._calls.ask(command, CourseStored)
        await self._settled(stored.news)
        return stored

    async def archive_course(self, actor: Actor, course_id: str) -> CourseStored:
        """Put a course away."""
        return await self._calls.ask(ArchiveCourse(course_id=course_id, **self._envelope(actor)), CourseStored)

    async def read_course(self, actor: Actor, course_id: str) -> Course:
        """Read a course."""
        return await self._calls.ask(ReadCourse(course_id=course_id, **self._envelope(actor)), Course)

    async def read_standing(self, course_id: str, student_ids: Sequence[str]) -> Standing:
        """Read who teaches a course, and which of these students are enrolled."""
        command = ReadStanding(course_id=course_id, student_ids=tuple(student_ids), **self._envelope(GATEWAY))
        return await self._calls.ask(command, Standing)

    async def list_courses(self, actor: Actor, limit: int, cursor: str | None) -> CoursePage:
        """List one's own courses."""
        return await self._calls.ask(ListCourses(limit=limit, cursor=cursor, **self._envelope(actor)), CoursePage)

    async def put_roster(self, actor: Actor, course_id: str, students: tuple[Student, ...]) -> RosterStored:
        """Replace a course's roster."""
        command = PutRoster(course_id=course_id, students=students, **self._envelope(actor, seconds=LONG_SECONDS))
        return await self._on_the_rolls(await self._calls.ask(command, RosterStored))

    async def enrol(self, actor: Actor, course_id: str, student_id: str, body: StudentBody) -> RosterStored:
        """Put one student on a roster; return once the open rolls have them too."""
        student = Student(student_id=student_id, name=body.name or "", email=body.email, roll_number=body.roll_number)
        command = EnrolStudent(course_id=course_id, student=student, **self._envelope(actor))
        return await self._on_the_rolls(await self._calls.ask(command, RosterStored))

    async def remove(self, actor: Actor, course_id: str, student_id: str) -> RosterStored:
        """Take one student off a roster; return once the open rolls know."""
        command = RemoveStudent(course_id=course_id, student_id=student_id, **self._envelope(actor))
        return await self._on_the_rolls(await self._calls.ask(command, RosterStored))

    async def read_outline(self, actor: Actor, course_id: str) -> Outline:
        """Read what a course's summary needs of courses and sessions."""
        command = ReadOutline(course_id=course_id, **self._envelope(actor, seconds=LONG_SECONDS))
        return await self._calls.ask(command, Outline)

    async def summarize(self, course_id: str) -> CourseSummary:
        """Count a course's records; the caller has been let in by `read_outline`."""
        command = SummarizeCourse(course_id=course_id, **self._envelope(GATEWAY, seconds=LONG_SECONDS))
        return await self._calls.ask(command, CourseSummary)

    async def read_active_sessions(self, course_id: str) -> ActiveSessions:
        """Read which of a course's rolls are open; the caller has been let in by `read_course`."""
        command = ReadActiveSessions(course_id=course_id, **self._envelope(GATEWAY))
        return await self._calls.ask(command, ActiveSessions)

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
            session_id=self._ids.of_session(now),
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

    async def change_session(self, actor: Actor, session_id: str, patch: SessionPatch) -> SessionStored:
        """Change a session; return once its open roll knows."""
        fields = {name: getattr(patch, name) for name in patch.__struct_fields__}
        command = ChangeSession(session_id=session_id, **fields, **self._envelope(actor))
        stored = await self._calls.ask(command, SessionStored)
        await self._settled(stored.news)
        return stored

    async def cancel(self, actor: Actor, session_id: str, command_id: str | None = None) -> SessionStored:
        """Cancel a session; return once its roll, where it has one, is closed."""
        command = CancelSession(session_id=session_id, **self._envelope(actor, command_id))
        stored = await self._calls.ask(command, SessionStored)
        await self._settled(stored.news)
        return stored

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

    async def reopen(self, actor: Actor, session_id: str, reason: str, command_id: str | None = None) -> RollRead:
        """Take an end or a submission back; return once the roll is open again."""
        command = ReopenSession(session_id=session_id, reason=reason, **self._envelope(actor, command_id))
        return await self._calls.ask(command, RollRead)

    async def submit(self, actor: Actor, session_id: str, command_id: str | None = None) -> Submission:
        """Submit a roll."""
        return await self._of_roll(SubmitRoll(session_id=session_id, **self._envelope(actor, command_id)), Submission)

    async def mark(self, actor: Actor, payload: MarkPayload) -> MarkStored:
        """Set one record."""
        command = MarkRecord(
            session_id=payload.session_id,
            mark=Mark(student_id=payload.student_id, status=payload.status, remarks=payload.remarks),
            reason=payload.reason,
            expected_seq=payload.expected_seq,
            **self._envelope(actor, payload.command_id),
        )
        return await self._of_roll(command, MarkStored)

    async def mark_many(self, actor: Actor, payload: BulkPayload) -> MarksStored:
        """Set many records, all or nothing."""
        command = MarkRecords(
            session_id=payload.session_id,
            marks=tuple(Mark(student_id=row.student_id, status=row.status, remarks=row.remarks) for row in payload.updates),
            reason=payload.reason,
            **self._envelope(actor, payload.command_id),
        )
        return await self._of_roll(command, MarksStored)

    async def clear(self, actor: Actor, payload: StudentCommandPayload) -> MarkStored:
        """Take a mark away."""
        command = ClearMark(
            session_id=payload.session_id,
            student_id=payload.student_id,
            reason=payload.reason,
            **self._envelope(actor, payload.command_id),
        )
        return await self._of_roll(command, MarkStored)

    async def join(self, actor: Actor, session_id: str, command_id: str | None = None) -> RollJoined:
        """Check the actor in, as of when the join reached this gateway."""
        command = JoinRoll(session_id=session_id, **self._envelope(actor, command_id))
        return await self._of_roll(command, RollJoined, for_staff=False)

    async def sync(self, actor: Actor, session_id: str, since_seq: int | None, command_id: str | None = None) -> RollSynced:
        """Read what changed on a roll since a number."""
        command = SyncRoll(session_id=session_id, since_seq=since_seq, **self._envelope(actor, command_id))
        return await self._of_roll(command, RollSynced, for_staff=actor.role != "student")

    async def read_roll(
        self, actor: Actor, session_id: str, command_id: str | None = None, *, seconds: float = SECONDS
    ) -> RollRead:
        """Read a whole roll."""
        command = ReadRoll(session_id=session_id, **self._envelope(actor, command_id, seconds=seconds))
        return await self._of_roll(command, RollRead)

    async def read_history(self, actor: Actor, session_id: str, since_seq: int, limit: int) -> HistoryPage:
        """Read a page of a roll's history."""
        command = ReadHistory(session_id=session_id, since_seq=since_seq, limit=limit, **self._envelope(actor))
        return await self._of_roll(command, HistoryPage)

    async def read_own_records(self, actor: Actor, course_id: str | None, limit: int, cursor: str | None) -> OwnRecords:
        """Read one's own records, with their history."""
        command = ReadOwnRecords(course_id=course_id, limit=limit, cursor=cursor, **self._envelope(actor))
        return await self._calls.ask(command, OwnRecords)

    async def read_changes(self, session_id: str, since_seq: int) -> ChangesRead:
        """Read what this gateway missed of a roll."""
        command = ReadChanges(session_id=session_id, since_seq=since_seq, **self._envelope(GATEWAY))
        return await self._calls.ask(command, ChangesRead)

    async def _of_roll(self, command: AttendanceCommand, expect: type[T], *, for_staff: bool = True) -> T:
        """Ask about a roll; where attendance-service knows none, let session-service say why."""
        try:
            return await self._calls.ask(command, expect)
        except Refused as refusal:
            if refusal.code != NO_ROLL:
                raise
        actor, session_id = command.actor, command.session_id
        await self._calls.ask(ExplainNoRoll(session_id=session_id, for_staff=for_staff, **self._envelope(actor)), Session)
        raise Refused("internal")

    async def _on_the_rolls(self, stored: RosterStored) -> RosterStored:
        await self._settled(stored.news)
        return stored

    async def _settled(self, news: News) -> None:
        """Wait until the rolls have heard what session-service has committed, so that it holds for the caller's next wish.

        It is committed whatever becomes of this: where attendance-service is away, the caller is not kept longer than
        `SECONDS`, and the news arrive with it.
        """
        if not (news.course_version or news.session_versions):
            return
        until = self._clock() + timedelta(seconds=SECONDS)
        for pause in chain(_PAUSES, repeat(_PAUSES[-1])):
            try:
                await self._calls.ask(AwaitNews(news=news, **self._envelope(GATEWAY)), Heard)
                return
            except Refused as refusal:
                if refusal.code != "unavailable" or self._clock() >= until:
                    log.warning("requests.news_not_heard", course_id=news.course_id, code=refusal.code)
                    return
            await asyncio.sleep(pause)

    def _envelope(self, actor: Actor, command_id: str | None = None, *, seconds: float = SECONDS) -> dict[str, Any]:
        received_at = self._received_at or self._clock()
        return {
            "command_id": command_id or self._ids.of_command(),
            "actor": actor,
            "received_at": received_at,
            "deadline": received_at + (_A_WHILE if seconds == SECONDS else timedelta(seconds=seconds)),
        }


async def answered(ask: Callable[[], Awaitable[T]], about: str) -> T:
    """Ask once a second until it is answered; raise Refused when asking again would not help."""
    while True:
        try:
            return await ask()
        except (Refused, Unavailable) as error:
            if isinstance(error, Refused) and not error.retryable:
                raise
            log.warning("requests.asked_again", about=about, reason=str(error))
            await asyncio.sleep(AGAIN_SECONDS)


class _Ids:
    """Makes ids that nobody else makes: of this process, counted."""

    def __init__(self) -> None:
        self._process = os.urandom(5).hex()
        self._sessions = count(int.from_bytes(os.urandom(2)))
        self._commands = f"{os.urandom(12).hex()}-"
        self._numbers = count(1)

    def of_session(self, now: datetime) -> str:
        """Make a session's: 24 hex characters, of the second, this process and a counter, so ordered by time."""
        return f"{int(now.timestamp()):08x}{self._process}{next(self._sessions) % 2**24:06x}"

    def of_command(self) -> str:
        """Make that of a command whose sender gave it none."""
        return f"{self._commands}{next(self._numbers):x}"
