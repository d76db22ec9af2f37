"""The table of what a client may send, and what each event does: translate, ask, let in. Decide nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from gateway import views
from gateway.auth import Tokens, User
from gateway.courses import Courses
from gateway.payloads import (
    MAX_BULK_BYTES,
    MAX_PAYLOAD_BYTES,
    BulkPayload,
    CommandPayload,
    CourseCommandPayload,
    MarkAsPayload,
    MarkPayload,
    RefreshPayload,
    ReopenPayload,
    SessionCommandPayload,
    StudentCommandPayload,
    SyncPayload,
)
from gateway.presence import Presence
from gateway.requests import Requests
from gateway.room import Kind, Member, Room
from gateway.rooms import Rooms
from gateway.watchers import Watchers
from shared.clock import rfc3339
from shared.errors import Refused, Unavailable
from shared.messages import ActiveSession, Actor, Course, RollRead, Status

P = TypeVar("P", bound=CommandPayload)

_MARKS: Final[dict[str, Status]] = {"Present": "present", "Absent": "absent", "Late": "late", "Excused": "excused"}


@dataclass(slots=True)
class Socket:
    """One connection to one namespace, and the commands it has under way for each session or course."""

    sid: str
    namespace: str
    user: User
    until: datetime
    """When it is cut off, unless its token is refreshed."""
    gone: bool = False
    turns: dict[str, list[asyncio.Future[None]]] = field(default_factory=dict)
    """For each session or course with a command under way, those that wait behind it."""

    @property
    def actor(self) -> Actor:
        """Who sits at it."""
        return self.user.actor

    def member(self, kind: Kind) -> Member:
        """Make a listener of it."""
        return Member(self.sid, self.namespace, self.actor.id, self.actor.role, kind)

    async def take_turn(self, about: str) -> bool:
        """Wait until the commands sent before about the same thing are answered; those about other things overlap.

        Says whether there was anything to wait for.
        """
        waiting = self.turns.get(about)
        if waiting is None:
            self.turns[about] = []
            return False
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in waiting:
                waiting.remove(turn)
            elif not turn.cancelled():
                self.pass_turn(about)
            raise
        return True

    def pass_turn(self, about: str) -> None:
        """Let the next command about the same thing begin."""
        waiting = self.turns[about]
        while waiting:
            turn = waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
                return
        del self.turns[about]


class Asked(NamedTuple):
    """One command a socket has sent: when it came, and what it says."""

    socket: Socket
    payload: Any
    received_at: datetime

    @property
    def actor(self) -> Actor:
        """Who asks."""
        return self.socket.actor


class Answer(NamedTuple):
    """What the caller is acknowledged, and the event that carries the same to them; None where there is none."""

    event: str | None
    view: views.View


class Command(NamedTuple):
    """What a client may send under one name: its shape, what it does, and its size."""

    payload: type[CommandPayload]
    do: Callable[[Asked], Awaitable[Answer]]
    max_bytes: int = MAX_PAYLOAD_BYTES


class Commands:
    """Does what clients ask. Every command raises Refused with a code of the contract."""

    def __init__(
        self, tokens: Tokens, requests: Requests, rooms: Rooms, courses: Courses, watchers: Watchers, presence: Presence
    ) -> None:
        self._tokens = tokens
        self._requests = requests
        self._rooms = rooms
        self._courses = courses
        self._watchers = watchers
        self._presence = presence

    def table(self) -> dict[str, Command]:
        """Say what a client may send."""
        marks = {
            f"markStudent{name}": Command(MarkAsPayload, self._marking(status, f"studentMarked{name}"))
            for name, status in _MARKS.items()
        }
        return marks | {
            "startAttendanceSession": Command(SessionCommandPayload, self._start),
            "joinAttendanceSession": Command(SessionCommandPayload, self._join),
            "leaveAttendanceSession": Command(SessionCommandPayload, self._leave),
            "markStudentAttendance": Command(MarkPayload, self._mark),
            "bulkUpdateAttendance": Command(BulkPayload, self._mark_many, MAX_BULK_BYTES),
            "clearStudentMark": Command(StudentCommandPayload, self._clear),
            "getAttendanceSessionData": Command(SessionCommandPayload, self._read),
            "syncAttendanceSession": Command(SyncPayload, self._sync),
            "getOnlineStudents": Command(SessionCommandPayload, self._online),
            "submitAttendance": Command(SessionCommandPayload, self._submit),
            "endAttendanceSession": Command(SessionCommandPayload, self._end),
            "reopenAttendanceSession": Command(ReopenPayload, self._reopen),
            "subscribeToCourse": Command(CourseCommandPayload, self._subscribe),
            "unsubscribeFromCourse": Command(CourseCommandPayload, self._unsubscribe),
            "checkActiveSessions": Command(CourseCommandPayload, self._check),
            "refreshToken": Command(RefreshPayload, self._refresh),
        }

    async def _start(self, asked: Asked) -> Answer:
        payload: SessionCommandPayload = asked.payload
        ask = self._ask(asked).start(asked.actor, payload.session_id, payload.command_id)
        return Answer("attendanceSessionStarted", views.started(await self._as_staff(asked.socket, payload.session_id, ask)))

    async def _reopen(self, asked: Asked) -> Answer:
        payload: ReopenPayload = asked.payload
        room = self._rooms.room_of(payload.session_id)
        # Staff in the room are told by the room.
        told = room is not None and asked.socket.sid in room.staff_members
        ask = self._ask(asked).reopen(asked.actor, payload.session_id, payload.reason, payload.command_id)
        read = await self._as_staff(asked.socket, payload.session_id, ask)
        return Answer(None if told else "attendanceSessionStarted", views.started(read))

    async def _read(self, asked: Asked) -> Answer:
        payload: SessionCommandPayload = asked.payload
        ask = self._ask(asked).read_roll(asked.actor, payload.session_id, payload.command_id)
        return Answer("attendanceSessionData", views.roll(await self._as_staff(asked.socket, payload.session_id, ask)))

    async def _end(self, asked: Asked) -> Answer:
        payload: SessionCommandPayload = asked.payload
        read = await self._ask(asked).end(asked.actor, payload.session_id, payload.command_id)
        return Answer("attendanceSessionEndedConfirm", views.ended_confirm(read))

    async def _submit(self, asked: Asked) -> Answer:
        payload: SessionCommandPayload = asked.payload
        submission = await self._ask(asked).submit(asked.actor, payload.session_id, payload.command_id)
        return Answer(None, views.submitted(submission, submission.seq))

    async def _mark(self, asked: Asked) -> Answer:
        return Answer(None, views.marked(await self._ask(asked).mark(asked.actor, asked.payload)))

    def _marking(self, status: Status, event: str) -> Callable[[Asked], Awaitable[Answer]]:
        """Make what marks a student with one status."""

        async def mark_as(asked: Asked) -> Answer:
            payload: MarkAsPayload = asked.payload
            fields = {name: getattr(payload, name) for name in payload.__struct_fields__}
            stored = await self._ask(asked).mark(asked.actor, MarkPayload(status=status, **fields))
            return Answer(event, views.marked_as(stored))

        return mark_as

    async def _mark_many(self, asked: Asked) -> Answer:
        stored = await self._ask(asked).mark_many(asked.actor, asked.payload)
        return Answer("attendanceBulkUpdateComplete", views.bulk_complete(stored))

    async def _clear(self, asked: Asked) -> Answer:
        return Answer(None, views.marked(await self._ask(asked).clear(asked.actor, asked.payload)))

    async def _join(self, asked: Asked) -> Answer:
        payload: SessionCommandPayload = asked.payload
        async with self._rooms.entering(payload.session_id) as room:
            answer = await self._ask(asked).join(asked.actor, payload.session_id, payload.command_id)
            if answer.enrolled:
                self._let_in(room, asked.socket, "student", answer.roll_seq, answer.course_id, statistics_known=False)
                self._count_in(payload.session_id, asked.socket)
        return Answer("attendanceSessionJoined", views.joined(answer))

    async def _sync(self, asked: Asked) -> Answer:
        payload: SyncPayload = asked.payload
        async with self._rooms.entering(payload.session_id) as room:
            answer = await self._ask(asked).sync(asked.actor, payload.session_id, payload.since_seq, payload.command_id)
            kind: Kind = "staff" if answer.as_staff else "student"
            self._let_in(room, asked.socket, kind, answer.seq, answer.session.course_id)
            if answer.joined and not answer.as_staff:
                self._count_in(payload.session_id, asked.socket)
        return Answer(None, views.synced(answer))

    async def _leave(self, asked: Asked) -> Answer:
        """Leave what was joined; also on a socket that does not listen, or not any more."""
        payload: SessionCommandPayload = asked.payload
        session_id, sid = payload.session_id, asked.socket.sid
        left = self._presence.leave(session_id, sid, at_once=True)
        room = self._rooms.room_of(session_id)
        if room is not None and (listener := room.listener(sid)) is not None and listener.kind == "student":
            self._rooms.leave(session_id, sid)
            left = True
        if not left and not (await self._ask(asked).sync(asked.actor, session_id, None, payload.command_id)).joined:
            raise Refused("forbidden", "Only who has joined can leave")
        return Answer("attendanceSessionLeft", views.session_left(session_id))

    async def _online(self, asked: Asked) -> Answer:
        payload: SessionCommandPayload = asked.payload
        asking = self._ask(asked)
        read = await asking.read_roll(asked.actor, payload.session_id, payload.command_id)
        try:
            # A Redis that says nothing has 2 s of its own, for a connection and again for an answer.
            async with asyncio.timeout(asking.seconds_left()):
                connected = await self._presence.online(payload.session_id)
        except (Unavailable, TimeoutError) as error:
            raise Refused("unavailable") from error
        return Answer("onlineStudentsData", views.online(read, connected))

    async def _subscribe(self, asked: Asked) -> Answer:
        payload: CourseCommandPayload = asked.payload
        async with self._courses.entering(payload.course_id) as course:
            since = course.turns
            read, active = await self._active(asked)
            self._watchers.admit(course, asked.socket.member(_kind(asked.actor, read)), since, active)
        return _active_sessions(payload.course_id, active)

    async def _unsubscribe(self, asked: Asked) -> Answer:
        payload: CourseCommandPayload = asked.payload
        self._watchers.leave(payload.course_id, asked.socket.sid)
        return await self._check(asked)

    async def _check(self, asked: Asked) -> Answer:
        payload: CourseCommandPayload = asked.payload
        _, active = await self._active(asked)
        return _active_sessions(payload.course_id, active)

    async def _active(self, asked: Asked) -> tuple[Course, tuple[ActiveSession, ...]]:
        """Read a course, which says whether the actor may know of it, and its active sessions."""
        course_id = asked.payload.course_id
        course = await self._ask(asked).read_course(asked.actor, course_id)
        return course, (await self._ask(asked).read_active_sessions(course_id)).items

    async def _refresh(self, asked: Asked) -> Answer:
        """Prolong a connection: for the same person in the same role, and never shorten it."""
        payload: RefreshPayload = asked.payload
        socket, user = asked.socket, await self._tokens.check(payload.token)
        if (user.actor.id, user.actor.role) != (socket.actor.id, socket.actor.role):
            raise Refused("forbidden")
        socket.user = user
        socket.until = max(socket.until, user.welcome_until(asked.received_at))
        return Answer(None, {"expires_at": rfc3339(socket.until)})

    def _ask(self, asked: Asked) -> Requests:
        return self._requests.received(asked.received_at)

    async def _as_staff(self, socket: Socket, session_id: str, ask: Awaitable[RollRead]) -> RollRead:
        """Read a roll and listen to it from there on."""
        async with self._rooms.entering(session_id) as room:
            read = await ask
            self._let_in(room, socket, "staff", read.seq, read.session.course_id)
        return read

    def _let_in(
        self, room: Room, socket: Socket, kind: Kind, seq: int, course_id: str, *, statistics_known: bool = True
    ) -> None:
        member = socket.member(kind)
        self._rooms.admit(room, member, seq, course_id=course_id, statistics_known=statistics_known)
        self._courses.host(course_id)

    def _count_in(self, session_id: str, socket: Socket) -> None:
        if not socket.gone:
            self._presence.enter(session_id, socket.actor.id, socket.sid)


def _kind(actor: Actor, course: Course) -> Kind:
    """Tell whether somebody watches a course as staff: who teaches it, or oversees all."""
    return "staff" if actor.role in ("admin", "service") or actor.id in course.teacher_ids else "student"


def _active_sessions(course_id: str, active: tuple[ActiveSession, ...]) -> Answer:
    return Answer("activeSessionsData", views.active_sessions(course_id, active))
