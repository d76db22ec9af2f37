"""Everything a caller may ask, whichever way they came: a Socket.IO event and its HTTP twin become the same command here."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator, Sequence
from datetime import datetime, timedelta
from itertools import chain, count, repeat
from typing import Any, Final, Generic, TypeVar

import structlog
from msgspec import Struct, field

from gateway.calls import Calls, Told
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
    SessionCommand,
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
W = TypeVar("W")

Joining = tuple[Actor, str, str | None, datetime, W]
"""Who joins which session, under which `command_id` if they gave one, when that reached this gateway, and who is told."""


class Question(Struct, Generic[T], frozen=True):
    """One question to a service: awaited, which raises Refused, or asked with `begin`, which needs no task."""

    _requests: "Requests"
    _calls: Calls
    _command: Any
    _expect: type[T]
    _for_staff: bool

    def begin(self, tell: Callable[[W, T | Refused], None], who: W) -> None:
        """Ask; see `Calls.begin`."""
        self._calls.begin(self._command, self._expect, tell, who)

    async def explain(self) -> Refused:
        """Ask session-service why there is no such roll, for who began this and was told `NO_ROLL`."""
        command = self._command
        return await self._requests.explain_no_roll(command.actor, command.session_id, for_staff=self._for_staff)

    def __await__(self) -> Generator[Any, None, T]:
        return self._answer().__await__()

    async def _answer(self) -> T:
        try:
            return await self._calls.ask(self._command, self._expect)
        except Refused as refusal:
            if refusal.code != NO_ROLL:
                raise
        raise await self.explain()


class Requests(Struct, frozen=True):
    """Asks the services on behalf of callers. Every method, or the Question it makes, raises Refused with a contract's code."""

    _calls: Calls
    _clock: Clock
    _ids: "_Ids" = field(default_factory=lambda: _Ids())
    _received_at: datetime | None = None

    def received(self, at: datetime) -> "Requests":
        """Ask on behalf of what reached this gateway at that time: the time it has counts from then."""
        return Requests(self._calls, self._clock, self._ids, at)

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

    def start(self, actor: Actor, session_id: str, command_id: str | None = None) -> Question[RollRead]:
        """Start a session; answered once its roll is open."""
        return self._question(StartSession(session_id=session_id, **self._envelope(actor, command_id)), RollRead)

    def end(self, actor: Actor, session_id: str, command_id: str | None = None) -> Question[RollRead]:
        """End a session; answered once its roll is closed."""
        return self._question(EndSession(session_id=session_id, **self._envelope(actor, command_id)), RollRead)

    def reopen(self, actor: Actor, session_id: str, reason: str, command_id: str | None = None) -> Question[RollRead]:
        """Take an end or a submission back; answered once the roll is open again."""
        command = ReopenSession(session_id=session_id, reason=reason, **self._envelope(actor, command_id))
        return self._question(command, RollRead)

    def submit(self, actor: Actor, session_id: str, command_id: str | None = None) -> Question[Submission]:
        """Submit a roll."""
        return self._question(SubmitRoll(session_id=session_id, **self._envelope(actor, command_id)), Submission)

    def mark(self, actor: Actor, payload: MarkPayload) -> Question[MarkStored]:
        """Set one record."""
        command = MarkRecord(
            session_id=payload.session_id,
            mark=Mark(student_id=payload.student_id, status=payload.status, remarks=payload.remarks),
            reason=payload.reason,
            expected_seq=payload.expected_seq,
            **self._envelope(actor, payload.command_id),
        )
        return self._question(command, MarkStored)

    def mark_many(self, actor: Actor, payload: BulkPayload) -> Question[MarksStored]:
        """Set many records, all or nothing."""
        command = MarkRecords(
            session_id=payload.session_id,
            marks=tuple(Mark(student_id=row.student_id, status=row.status, remarks=row.remarks) for row in payload.updates),
            reason=payload.reason,
            **self._envelope(actor, payload.command_id),
        )
        return self._question(command, MarksStored)

    def clear(self, actor: Actor, payload: StudentCommandPayload) -> Question[MarkStored]:
        """Take a mark away."""
        command = ClearMark(
            session_id=payload.session_id,
            student_id=payload.student_id,
            reason=payload.reason,
            **self._envelope(actor, payload.command_id),
        )
        return self._question(command, MarkStored)

    def begin_joins(self, joins: Sequence[Joining[W]], tell: Callable[[Told[W, RollJoined]], None]) -> None:
        """Check many in who ask about the same time, and have each told; see `Calls.begin_all`."""
        addresses = self._calls.addresses(len(joins))
        asking = [
            (
                JoinRoll(
                    session_id=session_id,
                    command_id=command_id or self._ids.of_command(),
                    actor=actor,
                    received_at=received_at,
                    deadline=received_at + _A_WHILE,
                    reply_to=address,
                ),
                who,
            )
            for address, (actor, session_id, command_id, received_at, who) in zip(addresses, joins, strict=True)
        ]
        self._calls.begin_all(asking, RollJoined, tell)

    def sync(self, actor: Actor, session_id: str, since_seq: int | None, command_id: str | None = None) -> Question[RollSynced]:
        """Read what changed on a roll since a number."""
        command = SyncRoll(session_id=session_id, since_seq=since_seq, **self._envelope(actor, command_id))
        return self._question(command, RollSynced, for_staff=actor.role != "student")

    def read_roll(
        self, actor: Actor, session_id: str, command_id: str | None = None, *, seconds: float = SECONDS
    ) -> Question[RollRead]:
        """Read a whole roll."""
        command = ReadRoll(session_id=session_id, **self._envelope(actor, command_id, seconds=seconds))
        return self._question(command, RollRead)

    def read_history(self, actor: Actor, session_id: str, since_seq: int, limit: int) -> Question[HistoryPage]:
        """Read a page of a roll's history."""
        command = ReadHistory(session_id=session_id, since_seq=since_seq, limit=limit, **self._envelope(actor))
        return self._question(command, HistoryPage)

    async def read_own_records(self, actor: Actor, course_id: str | None, limit: int, cursor: str | None) -> OwnRecords:
        """Read one's own records, with their history."""
        command = ReadOwnRecords(course_id=course_id, limit=limit, cursor=cursor, **self._envelope(actor))
        return await self._calls.ask(command, OwnRecords)

    async def read_changes(self, session_id: str, since_seq: int) -> ChangesRead:
        """Read what this gateway missed of a roll."""
        command = ReadChanges(session_id=session_id, since_seq=since_seq, **self._envelope(GATEWAY))
        return await self._calls.ask(command, ChangesRead)

    def _question(self, command: SessionCommand | AttendanceCommand, expect: type[T], *, for_staff: bool = True) -> Question[T]:
        return Question(self, self._calls, command, expect, for_staff)

    async def explain_no_roll(self, actor: Actor, session_id: str, *, for_staff: bool) -> Refused:
        """Where attendance-service knows no roll, let session-service say why."""
        explain = ExplainNoRoll(session_id=session_id, for_staff=for_staff, **self._envelope(actor))
        try:
            await self._calls.ask(explain, Session)
        except Refused as why:
            return why
        return Refused("internal")

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
