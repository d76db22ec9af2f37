"""A way from a client to a server that can go wrong as networks do: cut, refused, frozen, slow, half-open."""

import asyncio
from contextlib import suppress

from yarl import URL


class Proxy:
    """A way to one server that can be cut, closed, frozen, made slow and left half-open. Lives on one loop."""

    def __init__(self, url: str) -> None:
        self._target = URL(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay_seconds = 0.0
        self.url = ""

    async def open(self, port: int = 0) -> None:
        """Let connections through, on the same port as before."""
        port = port or URL(self.url).port or 0 if self.url else port
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.url = str(self._target.with_host("127.0.0.1").with_port(self._server.sockets[0].getsockname()[1]))

    @property
    def connections(self) -> int:
        """How many connections there are through it."""
        return len(self._writers) // 2

    def cut(self) -> None:
        """Break the connections there are."""
        for writer in self._writers:
            writer.transport.abort()

    def close(self) -> None:
        """Break the connections there are and refuse new ones."""
        if self._server:
            self._server.close()
        self.cut()

    def freeze(self) -> None:
        """Keep the connections, and accept new ones, but let nothing pass."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything pass again, what was held back first."""
        self._flowing.set()

    def slow(self, seconds: float) -> None:
        """Hold every piece back for this long, one after the other; 0 is as fast as can be."""
        self._delay_seconds = seconds

    def half_open(self) -> None:
        """Let nothing pass ever again on the connections there are, which neither end is told; new ones work."""
        self._dead |= self._writers

    async def end(self) -> None:
        """Close, and leave nothing behind."""
        self.close()
        self.thaw()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="proxy")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        with suppress(OSError):
            await asyncio.gather(self._pipe(reader, there[1]), self._pipe(there[0], writer))
        for end in (writer, there[1]):
            end.transport.abort()
            self._writers.discard(end)
            self._dead.discard(end)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds)
            await self._flowing.wait()
            if writer not in self._dead:
                writer.write(data)
                await writer.drain()
        # An end that has been closed is not told to the other one of a half-open connection.
        if writer not in self._dead:
            writer.transport.abort()
