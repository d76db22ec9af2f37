"""How the system tests talk to a gateway: over HTTP, and as a Socket.IO client that remembers what it heard."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import socketio

from shared.messages import Role
from tests.system.rig import Rig, token, unique

SECONDS = 30
"""How long to wait for what must come, on however busy a machine; where a bound is promised, its test has one of its own."""

Payload = dict[str, Any]

SOON_SECONDS = 1.0

BUSY = frozenset({"timeout", "unavailable"})
"""What the contract tells clients to send again: on a busy machine a part may take longer than its 2 s."""


class Caller:
    """One Socket.IO client. Events are kept in order; `heard` waits for the next that fits."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.client = socketio.AsyncClient(reconnection=False)
        self.events: list[tuple[str, Payload]] = []
        self._news = asyncio.Condition()
        self.client.on("*", self._take, namespace=namespace)

    async def _take(self, event: str, *payloads: Any) -> None:
        async with self._news:
            self.events.append((event, payloads[0] if payloads else {}))
            self._news.notify_all()

    async def connect(self, url: str, bearer: str, transports: Sequence[str] = ("websocket",)) -> None:
        """Connect with a token."""
        await self.client.connect(
            url,
            auth={"token": bearer},
            namespaces=[self.namespace],
            transports=list(transports),
            wait_timeout=SECONDS,
        )

    async def ask_once(self, event: str, *payload: object, seconds: float = SECONDS) -> Payload:
        """Send a command and return its acknowledgement, whatever it is."""
        data = payload[0] if len(payload) == 1 else payload
        answer: Payload = await self.client.call(event, data, namespace=self.namespace, timeout=seconds)
        return answer

    async def ask(self, event: str, *payload: object) -> Payload:
        """Send a command, again while a part was too slow, and return its acknowledgement."""
        async with asyncio.timeout(SECONDS):
            while True:
                began = time.monotonic()
                answer = await self.ask_once(event, *payload)
                if not is_busy(answer, time.monotonic() - began):
                    return answer
                await self.heard("attendanceError", lambda said: said["event"] == event and said["code"] in BUSY)

    async def heard(self, event: str, fits: Callable[[Payload], bool] = lambda _: True) -> Payload:
        """Wait for an event, heard before or still to come; it is then forgotten."""

        def position() -> int | None:
            found = (i for i, (name, payload) in enumerate(self.events) if name == event and fits(payload))
            return next(found, None)

        async with asyncio.timeout(SECONDS), self._news:
            await self._news.wait_for(lambda: position() is not None)
            index = position()
            assert index is not None
            return self.events.pop(index)[1]

    def names(self) -> list[str]:
        """Tell the names of what was heard and not taken."""
        return [name for name, _ in self.events]


def is_busy(answer: Payload, seconds: float = math.inf) -> bool:
    """Tell whether an answer, of either way in, came after so long because a part was too slow: then it is asked again.

    Nobody is told `timeout` at once: that would be a defect.
    """
    error = answer.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code == "unavailable" or (code == "timeout" and seconds > SOON_SECONDS)


@asynccontextmanager
async def calling(
    url: str,
    bearer: str,
    *,
    namespace: str = "/attendance",
    transports: Sequence[str] = ("websocket",),
) -> AsyncIterator[Caller]:
    """Connect a client for the length of the block."""
    caller = Caller(namespace)
    await caller.connect(url, bearer, transports)
    try:
        yield caller
    finally:
        await caller.client.disconnect()


async def http(
    url: str, method: str, path: str, bearer: str | None = None, *, json: object = None, **options: Any
) -> tuple[int, Payload]:
    """Ask over HTTP, again while a part was too slow; return the status and the body."""
    async with asyncio.timeout(SECONDS):
        while True:
            began = time.monotonic()
            answer = await http_once(url, method, path, bearer, json=json, **options)
            if not is_busy(answer[1], time.monotonic() - began):
                return answer


async def http_once(
    url: str, method: str, path: str, bearer: str | None = None, *, json: object = None, **options: Any
) -> tuple[int, Payload]:
    """Ask over HTTP; return the status and the body, whatever they are."""
    headers = {**({"Authorization": f"Bearer {bearer}"} if bearer else {}), **options.pop("headers", {})}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
        session.request(method, f"{url}/api/v1{path}", headers=headers, json=json, **options) as response,
    ):
        if response.content_type != "application/json":
            return response.status, {"body": await response.read(), "headers": response.headers}
        return response.status, await response.json()


@dataclass(frozen=True)
class Lecture:
    """A course with a teacher and a roster, and one session of it."""

    course_id: str
    session_id: str
    teacher: str
    students: tuple[str, ...]

    @property
    def about(self) -> Payload:
        """The payload of a command about it."""
        return {"session_id": self.session_id}


async def a_lecture(url: str, *, students: int = 3, check_in: Payload | None = None) -> Lecture:
    """Make a course, its roster and a scheduled session, over HTTP as an admin would."""
    admin = an_admin()
    course_id, teacher = unique("course"), unique("teacher")
    roster = [{"student_id": unique(f"s{number}"), "name": f"Student {number}"} for number in range(students)]
    course = {"title": "Algorithms", "teacher_ids": [teacher], "time_zone": "Europe/Berlin"}
    status, body = await http(url, "PUT", f"/courses/{course_id}", admin, json=course)
    assert status == 201, body
    status, body = await http(url, "PUT", f"/courses/{course_id}/roster", admin, json=roster)
    assert (status, body) == (200, {"added": students, "updated": 0, "removed": 0})
    session_id = await a_session(url, course_id, check_in=check_in)
    return Lecture(course_id, session_id, teacher, tuple(line["student_id"] for line in roster))


async def a_session(url: str, course_id: str, *, check_in: Payload | None = None) -> str:
    """Schedule one more session of a course."""
    session = {
        "course_id": course_id,
        "title": "Sorting",
        "date": "2026-11-24",
        "start_time": "10:00",
        "end_time": "11:30",
        **({"check_in": check_in} if check_in else {}),
    }
    status, body = await http(url, "POST", "/sessions", an_admin(), json=session)
    assert status == 201, body
    assert body["status"] == "scheduled"
    return str(body["id"])


def an_admin() -> str:
    """Mint the token of an admin of its own: what one user asks is counted together, and too much of it is refused."""
    return token(unique("admin"), "admin")


def bearer(subject: str, role: Role) -> str:
    """Mint a token for one of a lecture's people."""
    return token(subject, role)


async def the_session(rig: Rig, lecture: Lecture, status: str) -> Payload:
    """Wait until a lecture's session has come to a status; fail when it does not."""
    async with asyncio.timeout(SECONDS):
        while True:
            code, session = await http(rig.gateways[1], "GET", f"/sessions/{lecture.session_id}", an_admin())
            assert code == 200
            if session["status"] == status:
                return session
