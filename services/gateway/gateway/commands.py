"""The table of what a client may send, and what each event does: translate, ask, let in. Decide nothing."""

import asyncio
from collections.abc import Callable
from typing import Final

from gateway import views
from gateway.asked import Answer, Asked, Command, Socket
from gateway.auth import Tokens
from gateway.courses import Courses
from gateway.joins import Joins
from gateway.payloads import (
    MAX_BULK_BYTES,
    BulkPayload,
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
from gateway.requests import Question, Requests
from gateway.room import Kind, Room
from gateway.rooms import Rooms
from gateway.watchers import Watchers
from shared.clock import rfc3339
from shared.errors import Refused, Unavailable
from shared.messages import (
    ActiveSession,
    Actor,
    Course,
    MarksStored,
    MarkStored,
    RollRead,
    RollSynced,
    Status,
    Submission,
)

_MARKS: Final[tuple[tuple[str, Status], ...]] = (
    ("Present", "present"),
    ("Absent", "absent"),
    ("Late", "late"),
    ("Excused", "excused"),
)


class Commands:
    """Does what clients ask. Every command raises Refused with a code of the contract."""

    def __init__(
        self,
        tokens: Tokens,
        requests: Requests,
        rooms: Rooms,
        courses: Courses,
        watchers: Watchers,
        presence: Presence,
        joins: Joins,
    ) -> None:
        self._tokens = tokens
        self._requests = requests
        self._rooms = rooms
        self._courses = courses
        self._watchers = watchers
        self._presence = presence
        self._joins = joins

    def table(self) -> dict[str, Command]:
        """Say what a client may send."""
        commands = [
            Command(SessionCommandPayload, "startAttendanceSession", self._start, _started, self._in_as_staff),
            Command(ReopenPayload, "reopenAttendanceSession", self._reopen, self._reopened, self._in_as_staff),
            Command(SessionCommandPayload, "getAttendanceSessionData", self._read, _roll, self._in_as_staff),
            Command(SessionCommandPayload, "joinAttendanceSession", together=self._joins),
            Command(SyncPayload, "syncAttendanceSession", self._sync, _synced, self._in_as_they_are),
            Command(MarkPayload, "markStudentAttendance", self._mark, _marked),
            *(Command(MarkAsPayload, f"markStudent{name}", self._marking(status), _marked_as(name)) for name, status in _MARKS),
            Command(BulkPayload, "bulkUpdateAttendance", self._mark_many, _marked_many, max_bytes=MAX_BULK_BYTES),
            Command(StudentCommandPayload, "clearStudentMark", self._clear, _marked),
            Command(SessionCommandPayload, "submitAttendance", self._submit, _submitted),
            Command(SessionCommandPayload, "endAttendanceSession", self._end, _ended),
            Command(SessionCommandPayload, "leaveAttendanceSession", do=self._leave),
            Command(SessionCommandPayload, "getOnlineStudents", do=self._online),
            Command(CourseCommandPayload, "subscribeToCourse", do=self._subscribe),
            Command(CourseCommandPayload, "unsubscribeFromCourse", do=self._unsubscribe),
            Command(CourseCommandPayload, "checkActiveSessions", do=self._check),
            Command(RefreshPayload, "refreshToken", do=self._refresh),
        ]
        return {command.name: command for command in commands}

    def _start(self, asked: Asked) -> Question[RollRead]:
        payload: SessionCommandPayload = asked.payload
        return self._ask(asked).start(asked.actor, payload.session_id, payload.command_id)

    def _reopen(self, asked: Asked) -> Question[RollRead]:
        payload: ReopenPayload = asked.payload
        return self._ask(asked).reopen(asked.actor, payload.session_id, payload.reason, payload.command_id)

    def _reopened(self, asked: Asked, read: RollRead) -> Answer:
        room = self._rooms.room_of(asked.payload.session_id)
        # Staff in the room are told by the room.
        told = room is not None and asked.socket.sid in room.staff_members
        return Answer(None if told else "attendanceSessionStarted", views.started(read))

    def _read(self, asked: Asked) -> Question[RollRead]:
        payload: SessionCommandPayload = asked.payload
        return self._ask(asked).read_roll(asked.actor, payload.session_id, payload.command_id)

    def _sync(self, asked: Asked) -> Question[RollSynced]:
        payload: SyncPayload = asked.payload
        return self._ask(asked).sync(asked.actor, payload.session_id, payload.since_seq, payload.command_id)

    def _mark(self, asked: Asked) -> Question[MarkStored]:
        return self._ask(asked).mark(asked.actor, asked.payload)

    def _marking(self, status: Status) -> Callable[[Asked], Question[MarkStored]]:
        """Make what marks a student with one status."""

        def mark_as(asked: Asked) -> Question[MarkStored]:
            payload: MarkAsPayload = asked.payload
            fields = {name: getattr(payload, name) for name in payload.__struct_fields__}
            return self._ask(asked).mark(asked.actor, MarkPayload(status=status, **fields))

        return mark_as

    def _mark_many(self, asked: Asked) -> Question[MarksStored]:
        return self._ask(asked).mark_many(asked.actor, asked.payload)

    def _clear(self, asked: Asked) -> Question[MarkStored]:
        return self._ask(asked).clear(asked.actor, asked.payload)

    def _submit(self, asked: Asked) -> Question[Submission]:
        payload: SessionCommandPayload = asked.payload
        return self._ask(asked).submit(asked.actor, payload.session_id, payload.command_id)

    def _end(self, asked: Asked) -> Question[RollRead]:
        payload: SessionCommandPayload = asked.payload
        return self._ask(asked).end(asked.actor, payload.session_id, payload.command_id)

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
            if not asked.socket.gone:
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

    def _in_as_staff(self, asked: Asked, room: Room, read: RollRead) -> None:
        """Have who has read a roll listen to it from there on."""
        self._let_in(room, asked.socket, "staff", read.seq, read.session.course_id)

    def _in_as_they_are(self, asked: Asked, room: Room, synced: RollSynced) -> None:
        """Have who has synced listen; a student who has joined counts as connected."""
        kind: Kind = "staff" if synced.as_staff else "student"
        self._let_in(room, asked.socket, kind, synced.seq, synced.session.course_id)
        if synced.joined and not synced.as_staff:
            self._presence.enter(room.session_id, asked.actor.id, asked.socket.sid, again=True)

    def _let_in(self, room: Room, socket: Socket, kind: Kind, seq: int, course_id: str) -> None:
        self._rooms.admit(room, socket.member(kind), seq, course_id=course_id)
        self._courses.host(course_id)


def _kind(actor: Actor, course: Course) -> Kind:
    """Tell whether somebody watches a course as staff: who teaches it, or oversees all."""
    return "staff" if actor.role in ("admin", "service") or actor.id in course.teacher_ids else "student"


def _active_sessions(course_id: str, active: tuple[ActiveSession, ...]) -> Answer:
    return Answer("activeSessionsData", views.active_sessions(course_id, active))


def _started(asked: Asked, read: RollRead) -> Answer:
    return Answer("attendanceSessionStarted", views.started(read))


def _roll(asked: Asked, read: RollRead) -> Answer:
    return Answer("attendanceSessionData", views.roll(read))


def _synced(asked: Asked, synced: RollSynced) -> Answer:
    return Answer(None, views.synced(synced))


def _marked(asked: Asked, stored: MarkStored) -> Answer:
    return Answer(None, views.marked(stored))


def _marked_as(name: str) -> Callable[[Asked, MarkStored], Answer]:
    return lambda asked, stored: Answer(f"studentMarked{name}", views.marked_as(stored))


def _marked_many(asked: Asked, stored: MarksStored) -> Answer:
    return Answer("attendanceBulkUpdateComplete", views.bulk_complete(stored))


def _submitted(asked: Asked, submission: Submission) -> Answer:
    return Answer(None, views.submitted(submission, submission.seq))


def _ended(asked: Asked, read: RollRead) -> Answer:
    return Answer("attendanceSessionEndedConfirm", views.ended_confirm(read))
