"""Engine.IO: one *link* for each connection, over websocket or polling, on which the sockets of its namespaces sit.

Here a client that does not keep to the protocol, says too much at once, or does not read, loses its link, and what the link
held is free again. Nothing here knows Socket.IO or attendance.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiohttp import web
from engineio.async_socket import AsyncSocket
from engineio.exceptions import QueueEmpty
from engineio.packet import Packet

from gateway.engine.outbound import Message, Outbound
from gateway.engine.polls import Answer, read_text
from gateway.engine.websockets import FAREWELL_SECONDS, KERNEL_BYTES, Malformed, WebSocket, buffer_little, upgraded
from gateway.rates import Bucket

CONNECT_SECONDS: Final = 10.0
"""How long a link may be without a namespace."""
REFUSED_SECONDS: Final = 1.0
"""How long a link without a namespace lasts whose client was refused or sent away: enough to read why."""
COMMANDS: Final = 200
COMMANDS_PER_SECOND: Final = 50
REFUSALS: Final = 1000
"""How many commands beyond the bucket are answered; refilled as fast as the bucket itself. Then the link is closed."""
POLLED_PACKETS: Final = 16
"""How many packets answer one poll: python-engineio's clients end a connection that brings more."""
_UNREAD: Final = 64
"""How many packets of one websocket may wait for the one before them to be done; then it is read no further."""

CLOSE: Final = Message(b"1")
PING: Final = Message(b"2")
NOOP: Final = Message(b"6")


class Link(AsyncSocket):  # type: ignore[misc]
    """One connection, over one transport or, while it is upgraded, two."""

    server: Any
    """The engine that has opened it."""
    closing: bool
    connected: bool
    upgrading: bool
    upgraded: bool

    def __init__(self, server: Any, sid: str, address: str) -> None:
        super().__init__(server, sid)
        self.queue = Outbound(self._too_slow)
        """What waits to be fetched, or to be written; `put` puts it there."""
        self.address = address
        """Where its client sits, as the engine's `origin` tells."""
        self.commands = Bucket(COMMANDS, COMMANDS_PER_SECOND)
        self.refusals = Bucket(REFUSALS, COMMANDS_PER_SECOND)
        self.namespaces: dict[str, str] = {}
        """Where it is connected, and its socket there."""
        self.left: set[str] = set()
        """Where it was: what crosses with a goodbye is no fault."""
        self.under_way = 0
        """Commands that are not answered yet."""
        self._loop = asyncio.get_running_loop()
        self._websocket: WebSocket | None = None
        self._doing: asyncio.Task[None] | None = None
        self._unread: deque[str] | None = None
        self._over = False
        self._answering: asyncio.Transport | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._lonely: asyncio.TimerHandle | None = None
        self._polling = False
        self._posting = False
        self._written = 0
        self._pinged = False

    def schedule_ping(self) -> None:
        """Ask for a sign of life after the interval, and expect it within the timeout."""
        self._pinged = False
        self._beat(self.server.ping_interval, self._ping)

    def _beat(self, seconds: float, then: Callable[..., None], *arguments: Any) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if not self.closed:
            self._heartbeat = self._loop.call_later(seconds, then, *arguments)

    def _ping(self) -> None:
        self.put(PING)
        self._beat(self.server.ping_timeout, self._expect_pong, self._progress())

    def _expect_pong(self, before: tuple[int, int]) -> None:
        """Give up, unless the client was still reading when it was last looked at, or is now: a roll takes its time.

        Who has read it all since then has the whole time to answer.
        """
        now = self._progress()
        if (before[1] or now[1]) and now != before:
            self._beat(self.server.ping_timeout, self._expect_pong, now)
        else:
            self.cut(self.server.reason.PING_TIMEOUT)

    def put(self, message: Message | None) -> None:
        """Send a message behind those that wait, at once where none does; None ends the writing."""
        websocket = self._websocket
        if websocket is None or websocket.paused or not self.queue.empty():
            self.queue.put_nowait(message)
        elif message is None:
            websocket.close()
        else:
            self._take_out(message)
            websocket.write(message.frames, in_crowd=message.to_crowd)

    def writable(self) -> None:
        """Send what waits, as far as there is room."""
        websocket = self._websocket
        while websocket is not None and not websocket.paused and not self.queue.empty():
            message = self.queue.get_nowait()
            if message is None:
                websocket.close()
            else:
                self._take_out(message)
                websocket.write(message.frames)

    def _take_out(self, message: Message) -> None:
        self._written += 1
        if message is PING:
            self._pinged = True

    def _progress(self) -> tuple[int, int]:
        return self._written, self._buffered()

    @property
    def _transport(self) -> asyncio.Transport | None:
        """The connection that is this link's own: its websocket's, or that of a poll while it is being answered.

        At any other time a connection that has brought a poll may be another client's: proxies keep and share them.
        """
        return self._answering if self._websocket is None else self._websocket.transport

    @contextmanager
    def _answering_on(self, transport: asyncio.Transport | None) -> Iterator[None]:
        """Write the answer to a poll in this block. One that cannot be written is lost, and the link with it."""
        self._answering = transport
        try:
            yield
        except ConnectionError:
            self.cut(self.server.reason.TRANSPORT_ERROR)
            raise
        finally:
            # Whoever has read it all may poll again before the writer knows.
            if self._answering is transport:
                self._answering = None

    def _buffered(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def without_namespace(self, seconds: float) -> None:
        """Close it after that time, unless it is connected to a namespace then."""
        if self._lonely is not None:
            self._lonely.cancel()
        if not self.namespaces and not self.closed:
            self._lonely = self._loop.call_later(seconds, self._close_lonely)

    def without_namespace_yet(self, seconds: float) -> None:
        """The same, where that is sooner: however often it tries in vain, it does not last longer for it."""
        if self._lonely is None or self._lonely.when() > self._loop.time() + seconds:
            self.without_namespace(seconds)

    def _close_lonely(self) -> None:
        if not self.namespaces:
            self.server.start_background_task(self.close, wait=False)

    async def close(self, wait: bool = False, abort: bool = False, reason: str | None = None) -> None:
        """Say goodbye (not with `abort`), and end it. The client has a moment to read what was said last."""
        if self.closing:
            return
        self.closing = True
        await self.server._trigger_event("disconnect", self.sid, reason or self.server.reason.SERVER_DISCONNECT)
        if not abort:
            self.put(CLOSE)
        self.put(None)
        self._end()
        self._loop.call_later(FAREWELL_SECONDS, self._abort)

    def cut(self, reason: str) -> None:
        """End it at once: nothing that waits is sent any more, and nothing of it stays in memory."""
        self._abort()
        self._end()
        self.server.start_background_task(self.close, wait=False, abort=True, reason=reason)

    def _end(self) -> None:
        self.closed = True
        for timer in (self._heartbeat, self._lonely):
            if timer is not None:
                timer.cancel()
        self.server.sockets.pop(self.sid, None)

    def _abort(self) -> None:
        self.queue.shut()
        if self._transport is not None:
            self._transport.abort()

    def _too_slow(self) -> None:
        self.server.complain(self, "does not read")
        self.cut(self.server.reason.TRANSPORT_ERROR)

    async def _close_malformed(self, error: Exception) -> None:
        self.server.complain(self, str(error))
        await self.close(abort=True, reason=self.server.reason.TRANSPORT_ERROR)

    def take(self, frame: str) -> Awaitable[None] | None:
        """Do what one packet says; what it returns is awaited before the next. Raise Malformed for what has no place here."""
        match frame[:1]:
            case "4":
                doing: Awaitable[None] | None = self.server.handlers["message"](self.sid, frame[1:])
                return doing
            case "3" if self.within_rate():
                # An answer to what has not been asked, or not been fetched, is no sign of life.
                if self._pinged:
                    self.schedule_ping()
                return None
            case "1":
                return self.close(abort=True, reason=self.server.reason.CLIENT_DISCONNECT)
            case kind:
                raise Malformed(f"a packet begins with {kind!r}")

    def received(self, frame: str) -> None:
        """Take a packet of the websocket in its turn: most are done at once, and what comes behind one that is not waits.

        It may have been cut while the packet was on its way.
        """
        if self._doing is not None:
            self._wait(frame)
        elif not self.closed:
            try:
                doing = self.take(frame)
            except Malformed as error:
                doing = self._close_malformed(error)
            if doing is not None:
                self._doing = self._loop.create_task(self._finish(doing))

    def _wait(self, frame: str) -> None:
        if self._unread is None:
            self._unread = deque()
        self._unread.append(frame)
        if len(self._unread) == _UNREAD and self._websocket is not None:
            self._websocket.transport.pause_reading()
        elif len(self._unread) == COMMANDS + REFUSALS:
            self.broken(Malformed("sends far too much"))

    async def _finish(self, doing: Awaitable[None]) -> None:
        try:
            await doing
        except Malformed as error:
            await self._close_malformed(error)
        finally:
            self._doing = None
            self._go_on()

    def _go_on(self) -> None:
        """Take what came meanwhile, and see off a client that went meanwhile."""
        while self._doing is None and self._unread:
            self.received(self._unread.popleft())
        if self._doing is None:
            if self._unread is not None and self._websocket is not None and not self._over:
                self._websocket.transport.resume_reading()
            self._unread = None
            if self._over:
                self._see_off()

    def broken(self, error: Malformed) -> None:
        """Close it: its client broke the protocol."""
        self.server.start_background_task(self._close_malformed, error)

    def lost(self) -> None:
        """See it off, once all it has said is done."""
        self._over = True
        self.queue.shut()
        if self._doing is None:
            self._see_off()

    def _see_off(self) -> None:
        if not self.closing:
            self.server.start_background_task(self.close, abort=True, reason=self.server.reason.TRANSPORT_CLOSE)

    def within_rate(self) -> bool:
        """Count one packet; False when it is too much, and raise Malformed when it is far too much."""
        now = self._loop.time()
        if self.commands.take(now):
            return True
        if self.refusals.take(now):
            return False
        raise Malformed("sends far too much")

    async def send(self, pkt: Packet) -> None:
        """Put a packet behind those that wait."""
        if not self.closed:
            self.put(Message(pkt.encode().encode()))

    async def handle_get_request(self, environ: dict[str, Any]) -> Any:
        """Answer a GET: with packets, or by becoming a websocket."""
        request: web.Request = environ["aiohttp.request"]
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return self._open_websocket(request)
        return await self.answer_poll(request, self.server._cors_headers(environ))

    async def answer_poll(self, request: web.Request, cors_headers: list[tuple[str, str]]) -> Answer:
        """Wait for what is to be sent, and answer with it; raise Malformed, which ends the link, for two that wait at once.

        Also where the client of the first has gone, or has not read its answer: what it was told is told to nobody else.
        """
        if self.upgrading or self.upgraded:
            messages = [NOOP]
        elif self._polling or self._buffered():
            raise Malformed("two requests poll at once")
        else:
            self._polling = True
            try:
                messages = await self.poll()
            finally:
                self._polling = False
        body = b"\x1e".join(packet for message in messages for packet in message.packets)
        if len(body) > KERNEL_BYTES:
            buffer_little(request.transport)
        headers = [("Content-Type", "text/plain; charset=UTF-8"), *cors_headers]
        return Answer(request, self._answering_on, body=body, headers=headers)

    async def poll(self) -> list[Message]:
        """Wait for what is to be sent, and take as much as a client reads at once; raise QueueEmpty when the link is over."""
        message = await self.queue.get()
        if message is None:
            raise QueueEmpty
        messages: list[Message] = []
        # What is over is not polled again.
        room = sys.maxsize if self.closed else POLLED_PACKETS
        while message is not None:
            if len(message.packets) > room:
                self.queue.put_back(Message(*message.packets[room:]))
                message = Message(*message.packets[:room])
            self._take_out(message)
            messages.append(message)
            room -= len(message.packets)
            if not room or self.queue.empty():
                return messages
            message = self.queue.get_nowait()
        self.queue.put_nowait(None)
        return messages

    async def handle_post_request(self, environ: dict[str, Any]) -> None:
        """Take the packets of a POST, whole; raise Malformed, after which the link is closed."""
        if self._posting:
            raise Malformed("two requests post at once")
        self._posting = True
        try:
            body = await read_text(environ["aiohttp.request"], max_bytes=self.server.max_http_buffer_size)
            for frame in body.split("\x1e"):
                # What one packet has ended takes no more.
                if not self.closed and (doing := self.take(frame)) is not None:
                    await doing
        except Malformed as error:
            if not self.closed:
                self.server.complain(self, str(error))
                raise
        finally:
            self._posting = False

    def _open_websocket(self, request: web.Request) -> web.StreamResponse:
        """Become a websocket, at once or, where the link polls by now, after its client has tried it."""
        listener = _Probe(self) if self.connected else self
        websocket, early, response = upgraded(
            request, listener, self.server.departures, self.server.writes, max_bytes=self.server.max_http_buffer_size
        )
        if isinstance(listener, _Probe):
            listener.begin(websocket)
        else:
            self.connected = True
            self.move_to(websocket)
        if early:
            websocket.data_received(early)
        return response

    def release_poll(self) -> None:
        """Let a poll that waits return: the client may not move while it is out."""
        if self._polling:
            self.queue.put_nowait(NOOP)

    def move_to(self, websocket: WebSocket) -> None:
        """Speak by this websocket from now on."""
        self.upgraded = True
        self._websocket = websocket
        websocket.listener = self
        self.writable()


class _Probe:
    """A websocket that a polling client tries: it asks, is answered, and says that it comes; else it stays where it is."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._asked = False

    def begin(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._late = asyncio.get_running_loop().call_later(CONNECT_SECONDS, self._give_up)
        if self._link.upgrading:
            self._give_up()

    def received(self, frame: str) -> None:
        link = self._link
        if frame == "2probe" and not self._asked and not link.upgrading and not link.closed:
            self._asked = link.upgrading = True
            self._websocket.write(Message(b"3probe").frames)
            link.release_poll()
        elif frame == "5" and self._asked and not link.closed and not link.upgraded:
            self._late.cancel()
            link.upgrading = False
            link.move_to(self._websocket)
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._late.cancel()
        if self._asked:
            self._link.upgrading = self._asked = False
        self._websocket.close()

    def broken(self, error: Malformed) -> None:
        self._give_up()

    def writable(self) -> None:
        pass

    def lost(self) -> None:
        self._give_up()
