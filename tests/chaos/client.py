"""A client that does what the contract tells clients: it sends again what was not answered, on another gateway if need be,
and syncs after a reconnect or at a gap. It remembers everything.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import socketio

from shared.messages import Role
from tests.chaos.journal import Sent, Views
from tests.system.copies import HEARD
from tests.system.rig import token, unique
from tests.system.talk import Caller, Payload

ANSWER_SECONDS = 4.0
"""How long a client waits before it takes a connection for dead. An answer comes within 2 s, a refusal if nothing else."""

CONNECT_SECONDS = 5.0
PAUSE_SECONDS = (0.05, 0.5)
REPEAT_CHANCE = 0.05
TOKEN_SECONDS = 24 * 3600
SYNC = "syncAttendanceSession"
GONE_ERRORS = (TimeoutError, socketio.exceptions.SocketIOError, OSError, ValueError)


class Line(Caller):
    """One connection; says when it is gone, and hands on what it hears in the order in which it came."""

    def __init__(self, namespace: str, heard: "asyncio.Queue[tuple[str, Payload]]") -> None:
        super().__init__(namespace)
        self.gone = asyncio.Event()
        self._heard = heard
        self.client.on("disconnect", self._on_gone, namespace=namespace)

    async def _on_gone(self, *reason: Any) -> None:
        self.gone.set()

    async def _take(self, event: str, *payloads: Any) -> None:
        self._heard.put_nowait((event, payloads[0] if payloads else {}))


class Client:
    """One person at one device."""

    def __init__(self, user_id: str, role: Role, gateways: Sequence[str], chance: random.Random) -> None:
        self.user_id = user_id
        self.views = Views(user_id, student=role == "student")
        self.journal: list[Sent] = []
        self._token = token(user_id, role, seconds=TOKEN_SECONDS)
        self._gateways = gateways
        self._chance = chance
        self._namespace = chance.choice(("/", "/attendance"))
        self._heard: asyncio.Queue[tuple[str, Payload]] = asyncio.Queue()
        self._line: Line | None = None
        self._connecting = asyncio.Lock()
        self._stale: set[str] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    async def do(self, session_id: str, event: str, **payload: Any) -> Payload:
        """Send a command until it is answered with something final, and now and then once more; return the answer."""
        about = {"session_id": session_id, "command_id": unique("c"), **payload}
        sent = Sent(self.user_id, session_id, event, about, time.monotonic())
        self.journal.append(sent)
        sent.answer = await self._until_answered(sent)
        sent.answered_at = time.monotonic()
        if sent.accepted and self._chance.random() < REPEAT_CHANCE:
            sent.repeated.append(await self._until_answered(sent))
        return sent.answer

    async def _until_answered(self, sent: Sent) -> Payload:
        while True:
            sent.attempts += 1
            answer = await self.ask(sent.event, sent.payload)
            if answer is not None and (answer["ok"] or not answer["error"]["retryable"]):
                return answer
            sent.why_again["no answer" if answer is None else answer["error"]["code"]] += 1
            await asyncio.sleep(self._chance.uniform(*PAUSE_SECONDS))

    async def ask(self, event: str, payload: Payload) -> Payload | None:
        """Ask once, on the connection there is or a new one; None, and no connection any more, when no answer comes."""
        line = await self._connected()
        asking = asyncio.ensure_future(line.ask_once(event, payload, seconds=ANSWER_SECONDS))
        gone = asyncio.ensure_future(line.gone.wait())
        try:
            await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                with suppress(*GONE_ERRORS):
                    answer = asking.result()
                    if self.views.student:
                        self.views.look_for_leaks(event, answer)
                    return answer
            self._hang_up(line)
            return None
        finally:
            for task in (asking, gone):
                task.cancel()
            await asyncio.gather(asking, gone, return_exceptions=True)

    async def follow(self, session_id: str) -> None:
        """Keep a copy of this roll from now on."""
        self.views.following.add(session_id)
        await self.sync(session_id)

    def leave(self, session_id: str) -> None:
        """Keep the copy no more."""
        self.views.following.discard(session_id)

    async def sync(self, session_id: str) -> bool:
        """Bring the copy of a roll up to date; say whether the roll could be had."""
        copy = self.views.copy_of(session_id)
        while True:
            answer = await self.ask(SYNC, {"session_id": session_id, **copy.lacking()})
            if answer is not None and answer["ok"]:
                copy.take(answer)
                return True
            if answer is not None and not answer["error"]["retryable"]:
                return False
            await asyncio.sleep(self._chance.uniform(*PAUSE_SECONDS))

    async def listen(self) -> None:
        """Keep the copies, until cancelled."""
        while True:
            if self._stale:
                await self.sync(self._stale.pop())
                continue
            event, payload = await self._heard.get()
            if self.views.student:
                self.views.look_for_leaks(event, payload)
            session_id = payload.get("session_id")
            if event not in HEARD or session_id not in self.views.following:
                continue
            if not self.views.copy_of(session_id).hear(event, payload):
                await self.sync(session_id)

    async def close(self) -> None:
        """Leave."""
        if self._line is not None:
            self._hang_up(self._line)
        await asyncio.gather(*self._leaving)

    async def _connected(self) -> Line:
        async with self._connecting:
            while self._line is None or self._line.gone.is_set():
                line = Line(self._namespace, self._heard)
                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await line.connect(self._chance.choice(self._gateways), self._token)
                except GONE_ERRORS:
                    self._let_go(line)
                    await asyncio.sleep(self._chance.uniform(*PAUSE_SECONDS))
                    continue
                self._line = line
                self.views.connects += 1
                self._stale |= self.views.following
                self._heard.put_nowait(("connected", {}))
            return self._line

    def _hang_up(self, line: Line) -> None:
        if self._line is line:
            self._line = None
        self._let_go(line)

    def _let_go(self, line: Line) -> None:
        task = asyncio.create_task(_disconnect(line), name="leaving")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


async def _disconnect(line: Line) -> None:
    # Whatever state it is in: its end may be frozen, or never have answered.
    with suppress(*GONE_ERRORS):
        async with asyncio.timeout(2):
            await line.client.eio.disconnect(abort=True)
    http = line.client.eio.http
    if http is not None and not http.closed:
        with suppress(*GONE_ERRORS):
            await http.close()
