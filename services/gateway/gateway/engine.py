"""Where python-socketio is extended, as subclasses: nothing here knows attendance.

The stock `emit` starts a task for each recipient and waits for all of them; with some hundreds at once that starves the
loop. Here a packet is encoded once and put on each recipient's queue, without a task and without an await.
"""

import logging
from collections.abc import Collection
from typing import Any, Final

import engineio
import msgspec
import socketio
from aiohttp import web
from engineio import packet as engine_packet
from engineio.async_drivers.aiohttp import WebSocket
from socketio import packet

NAMESPACES: Final = ("/", "/attendance")
SENT: Final = " "
"""Stands before the name of every event a client has sent, so that none passes for the library's own `connect`."""


class Json:
    """JSON for the library's packets, which may then carry msgspec structs."""

    @staticmethod
    def dumps(data: Any, **_: Any) -> str:
        """Write JSON."""
        return msgspec.json.encode(data).decode()

    @staticmethod
    def loads(text: str | bytes, **_: Any) -> Any:
        """Read JSON; raise ValueError (msgspec.DecodeError) for anything else."""
        return msgspec.json.decode(text)


class Manager(socketio.AsyncRedisManager):  # type: ignore[misc]
    """Rooms. What is rare and must reach a socket anywhere goes the stock way, over Redis; fan-out stays in this process."""

    def emit_here(
        self, event: str, data: Any, room: str, *, skip: Collection[str] = (), namespaces: Collection[str] = NAMESPACES
    ) -> None:
        """Send an event to the sockets of a room that are connected here, in the order of the calls."""
        for namespace in namespaces:
            if room not in self.rooms.get(namespace, {}):
                continue
            encoded = self.server.packet_class(packet.EVENT, namespace=namespace, data=[event, data]).encode()
            message = engine_packet.Packet(engine_packet.MESSAGE, encoded)
            for sid, eio_sid in self.get_participants(namespace, room):
                socket = self.server.eio.sockets.get(eio_sid)
                if sid not in skip and socket is not None and not socket.closed:
                    socket.queue.put_nowait(message)

    def enter_here(self, sid: str, namespace: str, room: str) -> bool:
        """Put a socket that is connected here into a room; False when it has gone."""
        if not self.is_connected(sid, namespace):
            return False
        self.basic_enter_room(sid, namespace, room)
        return True


class _WebSocket(WebSocket):  # type: ignore[misc]
    """Without permessage-deflate, which costs 100 KB for each connection whose client offers it."""

    async def __call__(self, environ: dict[str, Any]) -> web.WebSocketResponse:
        self._sock = web.WebSocketResponse(max_msg_size=self.server.max_http_buffer_size, compress=False)
        self.environ = environ
        await self._sock.prepare(environ["aiohttp.request"])
        await self.handler(self)
        return self._sock


class _Engine(engineio.AsyncServer):  # type: ignore[misc]
    """Ends a connection without waiting until the client has fetched the farewell: one that polls no more never does."""

    async def disconnect(self, sid: str | None = None) -> None:
        socket = self.sockets.get(sid)
        if socket is None:
            await super().disconnect(sid)
            return
        await socket.close(wait=False, reason=self.reason.SERVER_DISCONNECT)
        self.sockets.pop(sid, None)


class Server(socketio.AsyncServer):  # type: ignore[misc]
    """A server that hands only well-formed events on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.eio._async = {**self.eio._async, "websocket": _WebSocket}

    def _engineio_server_class(self) -> type[_Engine]:
        return _Engine

    async def _handle_event(self, eio_sid: str, namespace: str | None, id: int | None, data: Any) -> None:
        if not isinstance(data, list) or not data or not isinstance(data[0], str):
            data = ["", *(data[1:] if isinstance(data, list) else ())]
        data = [f"{SENT}{data[0]}", *data[1:]]
        await super()._handle_event(eio_sid, namespace, id, data)


def quiet_logger() -> logging.Logger:
    """Make the library's logger: a malformed packet is a caller's mistake, so one line and no traceback."""
    logger = logging.getLogger("rollcall.socketio")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_without_traceback)
    return logger


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]!r}", ()
    record.exc_info = None
    return True
