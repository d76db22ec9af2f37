"""A gateway that is told to stop: its clients hear of it, are answered first, and come back to another one by themselves."""

import asyncio
import json
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
import socketio

from tests.system.rig import Process, Rig, process_of, unique
from tests.system.talk import SECONDS, Payload, a_lecture, a_session, bearer, calling
from tests.system.test_js_client import JS
from tests.system.test_js_client import node as node

NAMESPACE = "/attendance"
GONE_SECONDS = 8
"""How long the drain of a gateway with few clients may take on a slow machine; on a quiet one it is below 2 s."""
LONGEST_WAIT_SECONDS = 10
"""What the issue allows a client to wait for a command while everything is restarted."""


@dataclass
class Visitor:
    """A client as deployed ones are: it reconnects by itself, each time to the next address, as behind a balancer."""

    urls: list[str]
    bearer: str
    transport: str = "websocket"
    heard: list[tuple[str, Payload]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Why each connection ended, in the library's words."""

    def __post_init__(self) -> None:
        self.client = socketio.AsyncClient(reconnection_delay=0.2, reconnection_delay_max=1)
        self.gone = asyncio.Event()
        self._next = cycle(self.urls)
        self.client.on("*", self._hear, namespace=NAMESPACE)
        self.client.on("disconnect", self._lose, namespace=NAMESPACE)

    async def _hear(self, event: str, payload: Payload) -> None:
        self.heard.append((event, payload))

    async def _lose(self, reason: str) -> None:
        self.lost.append(reason)
        self.gone.set()

    async def ask(self, event: str, payload: Payload) -> Payload:
        """Send a command once; raise when the connection is lost before the answer."""
        self.gone.clear()
        answering = asyncio.ensure_future(self.client.call(event, payload, namespace=NAMESPACE, timeout=SECONDS))
        losing = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({answering, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise socketio.exceptions.DisconnectedError
            answer: Payload = answering.result()
            return answer
        finally:
            answering.cancel()
            losing.cancel()

    async def insist(self, event: str, payload: Payload) -> tuple[Payload, float]:
        """Send a command as the contract tells clients to: again, as the same one, until it is done; and how long it took."""
        began = time.monotonic()
        payload = {"command_id": uuid4().hex, **payload}
        while True:
            with suppress(socketio.exceptions.SocketIOError):
                answer = await self.ask(event, payload)
                if answer["ok"] or not answer["error"]["retryable"]:
                    return answer, time.monotonic() - began
            await asyncio.sleep(0.05)


@asynccontextmanager
async def visiting(urls: list[str], bearer: str, transport: str = "websocket") -> AsyncIterator[Visitor]:
    visitor = Visitor(urls, bearer, transport)
    await visitor.client.connect(
        lambda: next(visitor._next),
        auth={"token": bearer},
        namespaces=[NAMESPACE],
        transports=[transport],
        wait_timeout=SECONDS,
    )
    try:
        yield visitor
    finally:
        await visitor.client.shutdown()


@contextmanager
def replaced(process: Process) -> Iterator[Process]:
    """Whatever becomes of this process, another one like it serves at the end."""
    try:
        yield process
    finally:
        with suppress(AssertionError, ProcessLookupError):
            process.kill()
        process.start()
        process.wait_ready()


@contextmanager
def frozen(*processes: Process) -> Iterator[None]:
    """Stop these processes where they are, for the length of the block."""
    signal_all(signal.SIGSTOP, processes)
    try:
        yield
    finally:
        signal_all(signal.SIGCONT, processes)


def signal_all(number: signal.Signals, processes: tuple[Process, ...]) -> None:
    for process in processes:
        assert process.popen is not None
        process.popen.send_signal(number)


async def until(condition: Any, seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def exit_status(process: Process, seconds: float = GONE_SECONDS) -> int:
    assert process.popen is not None
    return await asyncio.to_thread(process.popen.wait, seconds)


async def status_of(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def test_clients_hear_of_it_and_come_back_by_themselves(cluster: Rig) -> None:
    """By websocket and by polling; the command in hand is answered before its connection is closed."""
    here, there = cluster.gateways
    lecture = await a_lecture(there, students=3)
    ann, ben, cem = (bearer(student, "student") for student in lecture.students)
    async with calling(there, bearer(lecture.teacher, "teacher")) as teacher:
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
    services = [process for name, process in cluster.processes.items() if name.startswith("attendance_service")]
    with replaced(cluster.processes["gateway-1"]) as leaving:
        async with (
            visiting([here, there], ann) as socket,
            visiting([here, there], ben, "polling") as poll,
            visiting([here, there], cem) as busy,
        ):
            for visitor in (socket, poll):
                assert (await visitor.ask("joinAttendanceSession", lecture.about))["ok"]
            with frozen(*services):
                asking = asyncio.create_task(busy.ask("joinAttendanceSession", lecture.about))
                await until(lambda: not asking.done() and busy.client.eio.queue.empty())
                await answered_by(busy)
                signal_all(signal.SIGTERM, (leaving,))
                await until(lambda: socket.lost and poll.lost)
                assert not busy.lost
            assert (answer := await asking)["ok"] or answer["error"]["code"] == "timeout"
            await until(lambda: busy.lost)
            assert await exit_status(leaving) == 0

            for visitor in (socket, poll, busy):
                (farewell,) = [payload for event, payload in visitor.heard if event == "serverDraining"]
                assert 0 <= farewell["reconnect_in_ms"] <= 1000
                # A DISCONNECT packet would read "server disconnect", and there would be no way back.
                assert visitor.lost in (["transport close"], ["transport error"])
                answer, _ = await visitor.insist("joinAttendanceSession", lecture.about)
                assert (answer["ok"], answer["status"]) == (True, "present")


async def answered_by(visitor: Visitor) -> None:
    """Wait until the gateway has read all that this client sent before now: it answers in order of arrival."""
    refused = await visitor.client.call("nobody knows this", {}, namespace=NAMESPACE, timeout=SECONDS)
    assert refused["error"]["code"] == "invalid"


@contextmanager
def unfinished_request(url: str, token: str) -> Iterator[socket.socket]:
    """An HTTP request in hand: its body is still to come."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        head = f"POST /api/v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n".encode())
        connection.settimeout(SECONDS)
        yield connection


@contextmanager
def one_more_gateway(cluster: Rig, folder: Path) -> Iterator[tuple[Process, str]]:
    name = unique("gateway")
    process = process_of(cluster, "gateway", name, folder)
    process.start()
    try:
        process.wait_ready()
        yield process, f"http://127.0.0.1:{process.environment['ROLLCALL_PORT']}"
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        del cluster.processes[name]


async def test_a_request_in_hand_is_answered_while_newcomers_are_refused(cluster: Rig, tmp_path: Path) -> None:
    """Not ready for balancers, 503 to a handshake; what was begun is done, and only then the process goes."""
    with (
        one_more_gateway(cluster, tmp_path) as (leaving, url),
        unfinished_request(url, bearer("admin", "admin")) as request,
    ):
        assert await status_of(f"{url}/health/ready") == 200  # and so the request before it has been read
        signal_all(signal.SIGTERM, (leaving,))
        async with asyncio.timeout(SECONDS):
            while await status_of(leaving.ready_url) != 503:
                pass
        assert await status_of(f"{url}/health/ready") == 503
        assert await status_of(f"{url}/health/live") == 200
        assert await status_of(f"{url}/socket.io/?EIO=4&transport=polling") == 503
        with pytest.raises(socketio.exceptions.ConnectionError):
            async with calling(url, bearer("ann", "student")):
                pass
        assert leaving.popen is not None
        assert leaving.popen.poll() is None

        request.sendall(b"{}")

        assert request.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert await exit_status(leaving) == 0


async def test_a_second_signal_ends_it_at_once(cluster: Rig, tmp_path: Path) -> None:
    with (
        one_more_gateway(cluster, tmp_path) as (leaving, url),
        unfinished_request(url, bearer("admin", "admin")),
    ):
        assert await status_of(f"{url}/health/ready") == 200
        signal_all(signal.SIGTERM, (leaving,))
        async with asyncio.timeout(SECONDS):
            while await status_of(leaving.ready_url) != 503:
                pass
        signal_all(signal.SIGINT, (leaving,))
        assert await exit_status(leaving, 2) == -signal.SIGINT


async def test_the_javascript_client_comes_back_by_itself(cluster: Rig, node: str, tmp_path: Path) -> None:
    """Polling first and then upgraded, polling only, websocket only: to the replacement at the same address."""
    with one_more_gateway(cluster, tmp_path) as (leaving, url):
        config = {"url": url + NAMESPACE, "token": bearer("ann", "student")}
        driver = await asyncio.create_subprocess_exec(
            node, JS / "reconnect.mjs", json.dumps(config), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            assert driver.stdout is not None
            async with asyncio.timeout(30):
                assert json.loads(await driver.stdout.readline()) == {"connected": 3}
                signal_all(signal.SIGTERM, (leaving,))
                assert await exit_status(leaving) == 0
                leaving.start()
                out, err = await driver.communicate()
        finally:
            with suppress(ProcessLookupError):
                driver.kill()
            await driver.wait()
    assert (driver.returncode, err) == (0, b""), err.decode()
    lines = [json.loads(line) for line in out.splitlines()]
    for who in ("upgraded", "polling", "websocket"):
        mine = [{key: value for key, value in line.items() if key != "who"} for line in lines if line["who"] == who]
        assert [next(iter(line)) for line in mine] == ["draining", "lost", "back"], lines
        assert 0 <= mine[0]["draining"] <= 1000
        assert mine[1]["lost"] in ("transport close", "transport error")


@dataclass
class Load:
    """What callers were told while everything was restarted."""

    joined: set[tuple[str, str]] = field(default_factory=set)
    marked: set[tuple[str, str]] = field(default_factory=set)
    waits: list[float] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)


async def joins(load: Load, visitor: Visitor, student: str, sessions: list[str]) -> None:
    for session_id in cycle(random.sample(sessions, len(sessions))):
        answer, seconds = await visitor.insist("joinAttendanceSession", {"session_id": session_id})
        assert answer["ok"], answer
        load.joined.add((session_id, student))
        load.waits.append(seconds)
        if load.over.is_set():
            return
        await asyncio.sleep(random.uniform(0.3, 0.9))


async def marks(load: Load, visitor: Visitor, sessions: list[str], students: tuple[str, ...]) -> None:
    # Each differs from the one before it, so that each is a change and has a line in history.
    for session_id in cycle(sessions):
        command_id = uuid4().hex
        student, status = random.choice(students), random.choice(("present", "late", "excused", "absent"))
        mark = {"session_id": session_id, "student_id": student, "status": status, "remarks": command_id}
        answer, seconds = await visitor.insist("markStudentAttendance", {**mark, "command_id": command_id})
        assert answer["ok"], answer
        load.marked.add((session_id, command_id))
        load.waits.append(seconds)
        if load.over.is_set():
            return
        await asyncio.sleep(0.1)


@pytest.mark.timeout(300)  # six processes start one after the other: long where others keep the machine busy
async def test_a_rolling_restart_loses_nothing_that_was_answered(cluster: Rig) -> None:
    """Every process, one after the other, under joins and marks from clients that send again as the contract says."""
    lecture = await a_lecture(cluster.gateways[0], students=12)
    sessions = [lecture.session_id, *[await a_session(cluster.gateways[0], lecture.course_id) for _ in range(5)]]
    load = Load()
    async with asyncio.TaskGroup() as running:
        ready = asyncio.Barrier(len(lecture.students) + 2 + 1)

        async def student(number: int) -> None:
            who, transport = lecture.students[number], ("polling" if number % 4 == 3 else "websocket")
            async with visiting(rotated(cluster.gateways, number), bearer(who, "student"), transport) as visitor:
                await ready.wait()
                await joins(load, visitor, who, sessions)

        async def teacher(number: int) -> None:
            async with visiting(rotated(cluster.gateways, number), bearer(lecture.teacher, "teacher")) as visitor:
                if number == 0:
                    for session_id in sessions:
                        answer, _ = await visitor.insist("startAttendanceSession", {"session_id": session_id})
                        assert answer["ok"], answer
                await ready.wait()
                await marks(load, visitor, sessions, lecture.students)

        for number in range(len(lecture.students)):
            running.create_task(student(number))
        for number in range(2):
            running.create_task(teacher(number))
        await ready.wait()
        for process in list(cluster.processes.values()):
            assert await asyncio.to_thread(process.stop) == 0
            process.start()
            await asyncio.to_thread(process.wait_ready)
        load.over.set()

    print(f"{len(load.waits)} commands answered, longest wait {max(load.waits):.1f} s")
    assert max(load.waits) < LONGEST_WAIT_SECONDS
    await holds(cluster, load, sessions)


def rotated(urls: list[str], number: int) -> list[str]:
    return urls[number % len(urls) :] + urls[: number % len(urls)]


async def holds(cluster: Rig, load: Load, sessions: list[str]) -> None:
    """Every command that was answered is in Postgres, once, and no number of any roll is missing."""
    connection = await asyncpg.connect(cluster.database_urls["attendance_service"])
    try:
        rows = await connection.fetch("SELECT * FROM attendance.history WHERE session_id = ANY($1) ORDER BY seq", sessions)
        records = await connection.fetch(
            "SELECT session_id, student_id FROM attendance.records WHERE session_id = ANY($1) AND joined_at IS NOT NULL",
            sessions,
        )
    finally:
        await connection.close()
    assert load.joined == {(row["session_id"], row["student_id"]) for row in records}
    marked = [(row["session_id"], row["command_id"]) for row in rows if row["kind"] == "marked"]
    assert load.marked <= set(marked)
    assert len(marked) == len(set(marked))
    joined = [(row["session_id"], row["student_id"]) for row in rows if row["kind"] == "joined"]
    assert len(joined) == len(set(joined))
    for session_id in sessions:
        numbers = [row["seq"] for row in rows if row["session_id"] == session_id]
        assert numbers == list(range(1, len(numbers) + 1))
