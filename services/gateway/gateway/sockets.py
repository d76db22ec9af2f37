"""The Socket.IO side: handshakes, commands in their turn and their answers, and the end of those whose token has expired."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec
import socketio
import structlog

from gateway import views
from gateway.asked import Answer, Asked, Command, Socket
from gateway.door import Door
from gateway.engine.links import Link
from gateway.engine.server import Manager, Reply, Server, Spoken
from gateway.errands import Errands
from gateway.expiries import Expiries
from gateway.payloads import CommandPayload, invalid, read_payload
from gateway.presence import Presence
from gateway.requests import SECONDS, Question
from gateway.rooms import Rooms
from gateway.watchers import Watchers
from shared.clock import Clock, rfc3339
from shared.errors import NO_ROLL, Refused

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
        errands: Errands,
        door: Door,
        commands: Mapping[str, Command],
        rooms: Rooms,
        watchers: Watchers,
        presence: Presence,
        clock: Clock,
    ) -> None:
        super().__init__(namespace)
        self._manager = manager
        self._errands = errands
        self._door = door
        self._commands = commands
        self._rooms = rooms
        self._watchers = watchers
        self._presence = presence
        self._clock = clock
        self._sockets: dict[str, Socket] = {}
        self._expiries = Expiries()
        self._waiting: dict[str, list[Asked]] = {}
        """By session, what is asked once its room hears."""

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
        self._sockets[sid] = Socket(sid, self.namespace, link, user, until)
        self._expiries.put(sid, until)

    def _disconnect(self, sid: str) -> None:
        if (socket := self._sockets.pop(sid, None)) is not None:
            socket.gone = True
        self._expiries.drop(sid)
        for listeners in (self._rooms, self._watchers, self._presence):
            listeners.leave_all(sid)

    def begin(self, reply: Reply, spoken: Spoken) -> None:
        """Begin a command, in its turn. One that is a question to a service, with nothing to wait for, needs no task."""
        socket = self._sockets.get(reply.sid)
        if socket is None:
            reply.drop()
            return
        session_id, event = "", spoken.event
        try:
            self._door.count(socket.user)
            command = self._commands.get(event)
            if command is None:
                raise invalid("event", f"nobody knows the event {event[:64]}")
            payload = spoken.meaning
            if payload is None:
                payload = spoken.meaning = _payload(command, spoken)
            session_id = getattr(payload, "session_id", "")
            asked = Asked(socket, payload, payload.about, self._clock(), command, reply)
        except Refused as refused:
            reply.give(self.refuse(reply.sid, event, refused, session_id))
            return
        except Exception:
            log.exception("sockets.command_failed", event_name=event[:64])
            reply.give(self.refuse(reply.sid, event, Refused("internal"), session_id))
            return
        turn = socket.take_turn(asked.about)
        enters = command.enters
        if enters and turn is None:
            asked.room = self._rooms.hold(session_id)
        if command.do is not None or turn is not None:
            self._errands.start(self._do(asked, turn))
        elif enters and asked.room is None:
            self._ask_once_heard(asked, session_id)
        else:
            self._ask(asked)

    def _ask_once_heard(self, asked: Asked, session_id: str) -> None:
        """Ask when the room hears. When a lecture begins hundreds come meanwhile: one task waits for all of them."""
        waiting = self._waiting.get(session_id)
        if waiting is None:
            self._waiting[session_id] = [asked]
            self._errands.start(self._ask_all_once_heard(session_id))
        else:
            waiting.append(asked)

    async def _ask_all_once_heard(self, session_id: str) -> None:
        room = None
        try:
            room = await self._rooms.hear(session_id)
        except Exception:
            log.exception("sockets.room_not_heard", session_id=session_id)
        for asked in self._waiting.pop(session_id):
            try:
                if room is None:
                    self._end(asked, Refused("internal"))
                else:
                    room.holds += 1
                    asked.room = room
                    self._ask(asked)
            except Exception:
                log.exception("sockets.command_failed", event_name=asked.command.name)
        if room is not None:
            room.holds -= 1

    def _ask(self, asked: Asked) -> None:
        try:
            if asked.command.together is not None:
                asked.command.together.ask(asked, self._answered)
            else:
                _question(asked).begin(self._answered, asked)
        except Exception:
            self._end(asked, None)

    def _answered(self, asked: Asked, result: Any) -> None:
        """Answer what was begun, and only then let who asked into the room that was held meanwhile; pass the turn on."""
        if isinstance(result, Refused):
            if result.code == NO_ROLL:
                self._errands.start(self._explain(asked))
            else:
                self._end(asked, result)
            return
        command, room = asked.command, asked.room
        try:
            assert command.answer is not None
            self._tell(asked, command.answer(asked, result))
        except Exception:
            self._end(asked, None)
            return
        if room is not None and command.let_in is not None and not asked.socket.gone:
            try:
                command.let_in(asked, room, result)
            except Exception:
                # It is answered: done is done.
                log.exception("sockets.not_let_in", event_name=command.name)
        asked.over()

    async def _explain(self, asked: Asked) -> None:
        try:
            together = asked.command.together
            why = await (together.explain(asked) if together is not None else _question(asked).explain())
        except Exception:
            self._end(asked, None)
        else:
            self._end(asked, why)

    def _end(self, asked: Asked, refused: Refused | None) -> None:
        """Refuse a command, without a refusal as the defect that is being handled, and pass the turn on in any case."""
        try:
            if refused is None:
                self._failed(asked)
            else:
                self._refused(asked, refused)
        finally:
            asked.over()

    async def _do(self, asked: Asked, turn: asyncio.Future[None] | None) -> None:
        """Do a command that has something to wait for: its turn, a room that must be heard, or more than one question.

        A question is asked as any other is, so that what was asked together is answered together, and in order.
        """
        if turn is not None:
            await turn
        command = asked.command
        try:
            if turn is not None and self._clock() >= asked.received_at + _TURN:
                raise Refused("timeout")
            if command.do is not None:
                self._tell(asked, await command.do(asked))
            elif command.enters:
                asked.room = await self._rooms.hear(asked.payload.session_id)
        except Refused as refused:
            self._end(asked, refused)
        except Exception:
            self._end(asked, None)
        else:
            if command.do is None:
                self._ask(asked)
            else:
                asked.over()

    def _tell(self, asked: Asked, answer: Answer) -> None:
        asked.reply.give(views.acknowledged(answer.view, self._clock()), answer.event)

    def _refused(self, asked: Asked, refused: Refused) -> None:
        session_id = getattr(asked.payload, "session_id", "")
        asked.reply.give(self.refuse(asked.reply.sid, asked.command.name, refused, session_id))

    def _failed(self, asked: Asked) -> None:
        log.exception("sockets.command_failed", event_name=asked.command.name)
        self._refused(asked, Refused("internal"))

    def refuse(self, sid: str, event: str, refused: Refused, session_id: str = "") -> views.View:
        """Tell a socket that its command is refused; return the acknowledgement, which says the same."""
        error = views.refusal(refused)
        heard = {**error, "event": event[:64], **({"session_id": session_id} if session_id else {})}
        self._manager.emit_here("attendanceError", heard, sid, self.namespace)
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


def _question(asked: Asked) -> Question[Any]:
    assert asked.command.question is not None
    return asked.command.question(asked)


def _payload(command: Command, spoken: Spoken) -> CommandPayload:
    if len(spoken.payloads) != 1:
        raise invalid("", "the payload must be one object")
    (payload,) = spoken.payloads
    # A character has at most four bytes.
    if spoken.size * 4 > command.max_bytes and len(msgspec.json.encode(payload)) > command.max_bytes:
        raise invalid("", f"the payload must have at most {command.max_bytes} bytes")
    return read_payload(payload, command.payload)
