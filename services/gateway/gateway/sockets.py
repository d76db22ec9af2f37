"""The Socket.IO side: handshakes, and the table of what a client may send. Translate, ask, send; decide nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import socketio
import structlog

from gateway import views
from gateway.auth import Tokens, User
from gateway.engine import SENT, Manager, Server
from gateway.payloads import MAX_PAYLOAD_BYTES, SessionCommandPayload, invalid, read_payload
from gateway.requests import Requests
from gateway.rooms import Kind, Member, Rooms
from shared.clock import Clock, rfc3339
from shared.errors import Refused
from shared.messages import Actor, RollRead

log = structlog.get_logger()


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted: int = 0


@dataclass(slots=True)
class Socket:
    """One connection to one namespace, and the commands it has under way for each session."""

    sid: str
    namespace: str
    user: User
    turns: dict[str, _Turn] = field(default_factory=dict)

    @property
    def actor(self) -> Actor:
        """Who sits at it."""
        return self.user.actor

    @asynccontextmanager
    async def turn(self, session_id: str) -> AsyncIterator[None]:
        """Wait until the commands sent before for this session are answered; those for other sessions overlap."""
        turn = self.turns.setdefault(session_id, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self.turns[session_id]


Answered = Callable[[Socket, SessionCommandPayload, datetime], Awaitable[tuple[str, views.View]]]
"""Does one command that came at a time: returns the event that answers the caller, and its payload."""


class Attendance(socketio.AsyncNamespace):  # type: ignore[misc]
    """One namespace; `/` and `/attendance` are two of these, alike in everything."""

    server: Server

    def __init__(self, namespace: str, manager: Manager, tokens: Tokens, requests: Requests, rooms: Rooms, clock: Clock):
        super().__init__(namespace)
        self._manager = manager
        self._tokens = tokens
        self._requests = requests
        self._rooms = rooms
        self._clock = clock
        self._sockets: dict[str, Socket] = {}
        self._events: dict[str, Answered] = {
            "startAttendanceSession": self._start,
            "joinAttendanceSession": self._join,
            "getAttendanceSessionData": self._read,
            "endAttendanceSession": self._end,
        }

    async def trigger_event(self, event: str, *args: Any) -> Any:
        """Meet whatever the library brings: a handshake, a goodbye, or an event (whose return value acknowledges it)."""
        if event == "connect":
            return self._connect(args[0], args[2] if len(args) > 2 else None)
        if event == "disconnect":
            return self._disconnect(args[0])
        return await self._answer(event.removeprefix(SENT), *args)

    def _connect(self, sid: str, auth: object) -> None:
        """Let a socket in; any fault is a refusal, for the library answers nothing else and would leak the socket."""
        try:
            user = self._tokens.check(auth.get("token") if isinstance(auth, dict) else None)
        except Refused as refused:
            raise socketio.exceptions.ConnectionRefusedError(refused.message, {"code": refused.code}) from None
        except Exception as error:
            log.exception("sockets.handshake_failed")
            raise socketio.exceptions.ConnectionRefusedError("Something went wrong", {"code": "internal"}) from error
        self._sockets[sid] = Socket(sid, self.namespace, user)

    def _disconnect(self, sid: str) -> None:
        self._sockets.pop(sid, None)
        self._rooms.leave_all(sid)

    async def _answer(self, event: str, sid: str, *payloads: Any) -> views.View | None:
        """Do a command in its turn and answer it; a refusal is answered twice, as acknowledgement and as an event."""
        socket = self._sockets.get(sid)
        if socket is None:
            return None
        session_id = ""
        try:
            handler = self._events.get(event)
            if handler is None:
                raise invalid("event", f"nobody knows the event {event[:64]}")
            received_at = self._clock()
            payload = _payload(payloads)
            session_id = payload.session_id
            async with socket.turn(session_id):
                name, view = await handler(socket, payload, received_at)
                answer = views.acknowledged(view, self._clock())
                self._manager.emit_here(name, answer, sid, namespaces=(self.namespace,))
                return answer
        except Refused as refused:
            return self._refuse(sid, event, session_id, refused)
        except Exception:
            log.exception("sockets.command_failed", event_name=event[:64])
            return self._refuse(sid, event, session_id, Refused("internal"))

    def _refuse(self, sid: str, event: str, session_id: str, refused: Refused) -> views.View:
        error = views.refusal(refused)
        heard = {**error, "event": event[:64], **({"session_id": session_id} if session_id else {})}
        self._manager.emit_here("attendanceError", heard, sid, namespaces=(self.namespace,))
        return {"ok": False, "error": error, "server_time": rfc3339(self._clock())}

    async def _start(self, socket: Socket, payload: SessionCommandPayload, _: datetime) -> tuple[str, views.View]:
        ask = self._requests.start(socket.actor, payload.session_id, payload.command_id)
        return "attendanceSessionStarted", views.started(await self._as_staff(socket, payload.session_id, ask))

    async def _read(self, socket: Socket, payload: SessionCommandPayload, _: datetime) -> tuple[str, views.View]:
        ask = self._requests.read_roll(socket.actor, payload.session_id, payload.command_id)
        return "attendanceSessionData", views.roll(await self._as_staff(socket, payload.session_id, ask))

    async def _end(self, socket: Socket, payload: SessionCommandPayload, _: datetime) -> tuple[str, views.View]:
        read = await self._requests.end(socket.actor, payload.session_id, payload.command_id)
        return "attendanceSessionEndedConfirm", views.ended_confirm(read)

    async def _join(self, socket: Socket, payload: SessionCommandPayload, received_at: datetime) -> tuple[str, views.View]:
        async with self._rooms.entering(payload.session_id) as room:
            answer = await self._requests.join(socket.actor, payload.session_id, payload.command_id, received_at=received_at)
            self._rooms.admit(room, _member(socket, "student"), answer.roll_seq)
        return "attendanceSessionJoined", views.joined(answer)

    async def _as_staff(self, socket: Socket, session_id: str, ask: Awaitable[RollRead]) -> RollRead:
        """Read a roll and listen to it from there on."""
        async with self._rooms.entering(session_id) as room:
            read = await ask
            self._rooms.admit(room, _member(socket, "staff"), read.seq)
        return read


def _member(socket: Socket, kind: Kind) -> Member:
    return Member(socket.sid, socket.namespace, socket.actor.id, kind)


def _payload(payloads: tuple[Any, ...]) -> SessionCommandPayload:
    if len(payloads) != 1:
        raise invalid("", "the payload must be one object")
    if len(msgspec.json.encode(payloads[0])) > MAX_PAYLOAD_BYTES:
        raise invalid("", f"the payload must have at most {MAX_PAYLOAD_BYTES} bytes")
    return read_payload(payloads[0], SessionCommandPayload)
