"""Who connects must say what they want: a connection on which no whole request comes in time is cut off.

aiohttp waits for a request as long as it keeps a connection between two (`shared/process.py`). A body has its own limit
(`bodies.py`), and so has what becomes a websocket (`links.py`).
"""

import asyncio

from aiohttp import StreamReader, web

from gateway.engine.departures import Connection, Departures


class Arrival(Connection):
    """A connection whose requests, each from its first byte to the end of its headers, may take so many seconds.

    The first counts from the connection on. Costs one timer, which is there only while a request is expected. A part of a
    request that comes in one piece with the end of another is seen when more of it comes.
    """

    def __init__(self, handler: web.RequestHandler, departures: Departures, seconds: float) -> None:
        super().__init__(handler, departures)
        self._handler = handler
        self._seconds = seconds
        self._deadline: asyncio.TimerHandle | None = None
        # Where headers end and bodies begin, only aiohttp's own state tells.
        self._requests = 0
        self._body: StreamReader | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there; the clock runs."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """It has sent something: the end of a request's headers, which stops the clock, or the first of the next one's."""
        begins = self._body is not None and self._body.is_eof() and not self._handler._upgraded
        super().data_received(data)
        if self._handler._request_count > self._requests:
            self._requests = self._handler._request_count
            self._body = self._handler._messages[-1][1] if self._handler._messages else None
            self._forget()
        elif begins and self._deadline is None:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone, or was cut off."""
        self._forget()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(self._seconds, self._cut)

    def _cut(self) -> None:
        # What aiohttp had put aside while it was busy, it reads behind our back.
        if self._handler._request_count == self._requests:
            self._transport.abort()

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
