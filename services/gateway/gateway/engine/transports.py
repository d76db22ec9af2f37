"""The Engine.IO server: it opens links and leads requests and websockets to them."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import engineio
import structlog
from aiohttp import web
from engineio.packet import OPEN, Packet

from gateway.engine.departures import Departures
from gateway.engine.links import CONNECT_SECONDS, Link
from gateway.engine.websockets import Malformed, Writes
from gateway.rates import Complaints

log = structlog.get_logger()

_COMPLAINTS: Final = (5, 0.1)

Origin = Callable[[web.BaseRequest], str]
"""Tells where the client of a request sits, in spite of the proxies between."""


class Engine(engineio.AsyncServer):  # type: ignore[misc]
    """The library's server, with links for its sockets."""

    def __init__(
        self,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        origin: Origin = lambda request: request.remote or "",
        departures: Departures | None = None,
        **options: Any,
    ) -> None:
        """`departures` are those of the server it is attached to, so that all its connections end in one queue."""
        super().__init__(**options, monitor_clients=False, http_compression=False)
        self.departures = departures or Departures()
        self.writes = Writes()
        self.connect_seconds = connect_seconds
        self._origin = origin
        self._complaints = Complaints(*_COMPLAINTS)

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        """Serve one request: what says no transport, or wants what only older clients did, is refused."""
        if not request.query.get("transport") or "j" in request.query:
            return web.json_response("Invalid transport", status=400)
        response: web.StreamResponse = await super().handle_request(request)
        return response

    def _log_error_once(self, message: str, message_key: str) -> None:
        # The message quotes the client: its origin, or the id of a session, by which who reads it could speak for that session.
        super()._log_error_once(message_key, message_key)

    async def disconnect(self, sid: str | None = None) -> None:
        """End a link without waiting until its client has fetched the farewell: one that polls no more never does."""
        if (link := self.sockets.get(sid)) is not None:
            await link.close(reason=self.reason.SERVER_DISCONNECT)

    async def send_packet(self, sid: str, packet: Packet) -> None:
        """Send a packet; one for a link that is over goes nowhere."""
        if (link := self.sockets.get(sid)) is not None:
            await link.send(packet)

    def complain(self, link: Link, reason: str) -> None:
        """Log that a client was cut off; a few lines for each address, and the number of those left out."""
        unsaid = self._complaints.about(link.address, asyncio.get_running_loop().time())
        if unsaid is not None:
            log.warning("links.closed", reason=reason[:200], address=link.address, unsaid=unsaid)

    async def _handle_connect(self, environ: dict[str, Any], transport: str, jsonp_index: int | None = None) -> Any:
        link = Link(self, self.generate_id(), self._origin(environ["aiohttp.request"]))
        self.sockets[link.sid] = link
        opening = {
            "sid": link.sid,
            "upgrades": self._upgrades(link.sid, transport),
            "pingTimeout": int(self.ping_timeout * 1000),
            "pingInterval": int(self.ping_interval * 1000),
            "maxPayload": self.max_http_buffer_size,
        }
        await link.send(Packet(OPEN, opening))
        await self._trigger_event("connect", link.sid, environ)
        link.schedule_ping()
        link.without_namespace(self.connect_seconds)
        if transport == "polling":
            link.connected = True
            return await link.answer_poll(environ["aiohttp.request"], self._cors_headers(environ))
        try:
            return await link.handle_get_request(environ)
        except Malformed as error:
            await link.close(abort=True)
            return self._bad_request(str(error))
