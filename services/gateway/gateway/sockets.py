"""The Socket.IO side: handshakes, commands in their turn and their answers, and the end of those whose token has expired."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec
import socketio
import structlog

from gateway import views
from gateway.commands import Asked, Command, Socket
from gateway.door import Door
from gateway.engine.links import Link
from gateway.engine.server import Manager, Server
from gateway.expiries import Expiries
from gateway.payloads import CommandPayload, invalid, read_payload
from gateway.presence import Presence
from gateway.requests import SECONDS
from gateway.rooms import Rooms
from gateway.watchers import Watchers
from shared.clock import Clock, rfc3339
from shared.errors import Refused

log = structlog.get_logger()

EXPIRY_SECONDS: Final = 0.5
_TURN: Final = timedelta(seconds=SECONDS)


class Attendance(socketio.AsyncNamespace):  # type: ignore[misc]
    """One namespace; `/` and `/attendance` are two of these, alike in everything."""

    server: Server

    def __init__(
        self,
        namespace: str,
        manager: Manager,
        door: Door,
        commands: Mapping[str, Command],
        rooms: Rooms,
        watchers: Watchers,
        presence: Presence,
        clock: Clock,
    ) -> None:
        super().__init__(namespace)
        self._manager = manager
        self._door = door
        self._commands = commands
        self._rooms = rooms
        self._watchers = watchers
        self._presence = presence
        self._clock = clock
        self._sockets: dict[str, Socket] = {}
        self._expiries = Expiries()

    async def trigger_event(self, event: str, *args: Any) -> Any:
        """Meet what the library brings: a handshake or a goodbye."""
        if event == "connect":
            return await self._connect(args[0], args[2] if len(args) > 2 else None)
        return self._disconnect(args[0])

    async def _connect(self, sid: str, auth: object) -> None:
        """Let a socket in; any fault is a refusal, for the library answers nothing else and would leak the socket."""
        try:
            link: Link = self.server.eio.sockets[self._manager.eio_sid_from_sid(sid, self.namespace)]
            user = await self._door.admit(auth.get("token") if isinstance(auth, dict) else None, link.address)
            self._door.count(user)
            until = user.welcome_until(self._clock())
            if link.closed:
                # It went while a new key was fetched: the library would let it in, and never notice.
                raise Refused("timeout")
        except Refused as refused:
            error = views.refusal(refused)
            data = {key: error[key] for key in ("code", "retry_after_ms") if key in error}
            raise socketio.exceptions.ConnectionRefusedError(refused.message, data) from None
        except Exception as error:
            log.exception("sockets.handshake_failed")
            raise socketio.exceptions.ConnectionRefusedError("Something went wrong", {"code": "internal"}) from error
        self._sockets[sid] = Socket(sid, self.namespace, user, until)
        self._expiries.put(sid, until)

    def _disconnect(self, sid: str) -> None:
        if (socket := self._sockets.pop(sid, None)) is not None:
            socket.gone = True
        self._expiries.drop(sid)
        for listeners in (self._rooms, self._watchers, self._presence):
            listeners.leave_all(sid)

    async def answer(self, sid: str, event: str, payloads: list[Any], size: int) -> views.View | msgspec.Raw | None:
        """Do a command in its turn and answer it; a refusal is answered twice, as acknowledgement and as an event."""
        socket = self._sockets.get(sid)
        if socket is None:
            return None
        session_id = ""
        try:
            self._door.count(socket.user)
            command = self._commands.get(event)
            if command is None:
                raise invalid("event", f"nobody knows the event {event[:64]}")
            received_at = self._clock()
            payload = _payload(command, payloads, size)
            session_id = getattr(payload, "session_id", "")
            waited = await socket.take_turn(payload.about)
            try:
                if waited and self._clock() >= received_at + _TURN:
                    raise Refused("timeout")
                name, view = await command.do(Asked(socket, payload, received_at))
                # Encoded once, for the event and for the acknowledgement.
                answer = msgspec.Raw(msgspec.json.encode(views.acknowledged(view, self._clock())))
                if name is not None:
                    self._manager.emit_here(name, answer, sid, namespaces=(self.namespace,))
                return answer
            finally:
                socket.pass_turn(payload.about)
        except Refused as refused:
            return self.refuse(sid, event, refused, session_id)
        except Exception:
            log.exception("sockets.command_failed", event_name=event[:64])
            return self.refuse(sid, event, Refused("internal"), session_id)

    def refuse(self, sid: str, event: str, refused: Refused, session_id: str = "") -> views.View:
        """Tell a socket that its command is refused; return the acknowledgement, which says the same."""
        error = views.refusal(refused)
        heard = {**error, "event": event[:64], **({"session_id": session_id} if session_id else {})}
        self._manager.emit_here("attendanceError", heard, sid, namespaces=(self.namespace,))
        return {"ok": False, "error": error, "server_time": rfc3339(self._clock())}

    def dismiss(self, user_id: str) -> list[str]:
        """Tell all sockets of a user that they must go, and answer them no more; list the connection of each, to be hung up."""
        dismissed = [socket.sid for socket in self._sockets.values() if socket.actor.id == user_id]
        connections = [self._manager.eio_sid_from_sid(sid, self.namespace) for sid in dismissed]
        for sid in dismissed:
            self.refuse(sid, "connect", Refused("unauthenticated", "An administrator has ended this connection"))
            self._disconnect(sid)
        return connections

    async def look_after(self) -> None:
        """Twice a second for ever: cut off the sockets whose token has expired."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            await self.cut_off_expired()

    async def cut_off_expired(self) -> None:
        """Tell the sockets whose token has expired by now, and disconnect them."""
        now = self._clock()
        for sid in self._expiries.due(now):
            socket = self._sockets.get(sid)
            if socket is not None and now >= socket.until:
                await self._cut_off(sid)
            # A token may have been refreshed meanwhile, or a handshake be under way that cannot be cut off.
            if socket is not None and not socket.gone:
                self._expiries.put(sid, socket.until)

    async def _cut_off(self, sid: str) -> None:
        self.refuse(sid, "connect", Refused("token_expired"))
        try:
            await self.server.disconnect(sid, namespace=self.namespace, ignore_queue=True)
        except Exception:
            log.exception("sockets.not_cut_off")
        # A whole school's tokens may expire together: others are served in between.
        await asyncio.sleep(0)


def _payload(command: Command, payloads: list[Any], size: int) -> CommandPayload:
    if len(payloads) != 1:
        raise invalid("", "the payload must be one object")
    # A character has at most four bytes.
    if size * 4 > command.max_bytes and len(msgspec.json.encode(payloads[0])) > command.max_bytes:
        raise invalid("", f"the payload must have at most {command.max_bytes} bytes")
    return read_payload(payloads[0], command.payload)
