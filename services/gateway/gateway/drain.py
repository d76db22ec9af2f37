"""How a gateway goes away: no new clients, those who are here are told, answered, and sent to the others in waves.

Transports are closed, and nothing is said besides: after Socket.IO's `disconnect` clients in JavaScript do not come back
by themselves, nor do clients in Python after Engine.IO's `close`.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.engine.links import Link
from gateway.engine.server import NAMESPACES, PATH, Manager, Server
from gateway.presence import Presence

log = structlog.get_logger()

SOCKETS_PER_SECOND: Final = 1000
"""How fast clients are sent to the other gateways, each of which costs them a handshake and a sync."""
SHORTEST_SECONDS: Final = 1.0
LONGEST_SECONDS: Final = 10.0
PATIENCE_SECONDS: Final = 20.0
"""When a gateway goes though something is still under way; with what follows it stays below 30 s."""
_WAVE_SECONDS: Final = 0.05
_FETCH_SECONDS: Final = 2.0
"""How long a client that polls may take to fetch what waits for it: it may have gone."""


class Drain:
    """One gateway's way out; `at_the_door` is the first middleware of its application."""

    def __init__(self, server: Server, manager: Manager, presence: Presence) -> None:
        self._server = server
        self._manager = manager
        self._presence = presence
        self._requests = 0
        self._cut: set[str] = set()
        self.begun = False

    @web.middleware
    async def at_the_door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the requests in hand; once the drain has begun, refuse sockets that are not ours with 503, and keep none."""
        of_a_socket = request.path == PATH
        # Those with a session elsewhere are here because a balancer took a newcomer of ours there: it shall do so again.
        if of_a_socket and self.begun and request.query.get("sid") not in self._server.eio.sockets:
            response: web.StreamResponse = _gone()
        else:
            # A poll lasts until something is said: those end with their sockets.
            self._requests += not of_a_socket
            try:
                response = await handler(request)
            finally:
                self._requests -= not of_a_socket
        if self.begun and not response.prepared:
            # A poll whose link has ended is refused by the library as if the client had made a mistake.
            if of_a_socket and request.method == "GET" and response.status == 400:
                response = _gone()
            response.force_close()
        return response

    async def leave(self) -> None:
        """Send every client away, each at the moment it was told and not before its commands are answered.

        Returns when nobody is left and no HTTP request is under way, or after `PATIENCE_SECONDS`.
        """
        now = asyncio.get_running_loop().time
        self.begun = True
        self._presence.hand_over()
        began = now()
        moments = await self._tell(began)
        log.info("drain.begun", sockets=len(moments), requests=self._requests)
        while (left := self._left()) or self._requests:
            if now() - began > PATIENCE_SECONDS:
                log.warning("drain.unfinished", sockets=len(left), requests=self._requests)
                return
            for eio_sid, link in left.items():
                if eio_sid not in self._cut and self._may_go(link, now() - moments.get(eio_sid, began)):
                    await self._close(link)
            await asyncio.sleep(_WAVE_SECONDS)
        log.info("drain.done", seconds=round(now() - began, 3))

    async def _tell(self, began: float) -> Mapping[str, float]:
        """Tell every socket when to connect again; return those moments by connection, one for all its namespaces."""
        sids = {namespace: list(self._manager.get_participants(namespace, None)) for namespace in NAMESPACES}
        seconds = min(max(sum(map(len, sids.values())) / SOCKETS_PER_SECOND, SHORTEST_SECONDS), LONGEST_SECONDS)
        moments: dict[str, float] = {}
        for namespace, sockets in sids.items():
            for number, (sid, eio_sid) in enumerate(sockets):
                moment = moments.setdefault(eio_sid, began + random.uniform(0, seconds))
                farewell = {"reconnect_in_ms": round((moment - began) * 1000)}
                self._manager.emit_here("serverDraining", farewell, sid, namespace)
                if number % 100 == 99:
                    await asyncio.sleep(0)
        return moments

    def _left(self) -> dict[str, Link]:
        return dict(self._server.eio.sockets)

    def _may_go(self, link: Link, overdue_seconds: float) -> bool:
        if overdue_seconds < 0 or link.under_way or link.upgrading:
            return False
        # What waits for a websocket is written before it is closed; a poll must come and fetch it.
        return link.upgraded or link.queue.empty() or overdue_seconds > _FETCH_SECONDS

    async def _close(self, link: Link) -> None:
        self._cut.add(link.sid)
        if link.upgraded:
            # It is closed once all is written.
            link.put(None)
        else:
            await link.close(abort=True, reason=self._server.eio.reason.TRANSPORT_CLOSE)


def _gone() -> web.Response:
    return web.json_response({"message": "This gateway is going away; connect again"}, status=503)
