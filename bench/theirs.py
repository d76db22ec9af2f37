"""The peers as they are measured: the Node monolith alone or doubled, and the ceiling of our gateway's library."""

import asyncio
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncpg

from bench.meter import Pids
from bench.stage import Stage, execute
from bench.system import STUDENT, TEACHER
from rollcall.launcher import Server, launch, on_a_port
from tests.system.rig import SECRET, unique

PEERS = Path(__file__).parent / "peers"


class Missing(Exception):
    """What it takes to run a peer is not on this machine."""


class Monolith:
    """P1: one process of it; P2: two, behind the Redis adapter."""

    name = "monolith"

    def __init__(self, database_url: str, servers: list[Server]) -> None:
        self._database_url = database_url
        self._servers = servers
        self._courses: set[str] = set()

    @property
    def urls(self) -> list[str]:
        """Where its processes serve."""
        return [server.url for server in self._servers]

    def groups(self) -> dict[str, Pids]:
        """Its processes."""
        return {"node": lambda: [server.process.pid for server in self._servers]}

    def schedule(self, sessions: int, students: int) -> list[str]:
        """Schedule a session for each teacher, on a course whose roster is the first so many students."""
        return asyncio.run(self._schedule(sessions, students))

    async def _schedule(self, sessions: int, students: int) -> list[str]:
        course_id = f"course-{students}"
        connection = await asyncpg.connect(self._database_url)
        try:
            if course_id not in self._courses:
                roster = [(course_id, STUDENT.format(n), f"Student {n}") for n in range(students)]
                await connection.copy_records_to_table("roster", records=roster)
                self._courses.add(course_id)
            ids = [unique("session") for _ in range(sessions)]
            rows = [(session_id, course_id, TEACHER.format(n)) for n, session_id in enumerate(ids)]
            await connection.copy_records_to_table("sessions", records=rows)
        finally:
            await connection.close()
        return ids


class Echo:
    """P3: acknowledges, and does nothing."""

    name = "python-socketio"

    def __init__(self, server: Server) -> None:
        self._server = server
        self.urls = [server.url]

    def groups(self) -> dict[str, Pids]:
        """Its process."""
        return {"echo": lambda: [self._server.process.pid]}

    def schedule(self, sessions: int, students: int) -> list[str]:
        """Make up some ids."""
        return [unique("session") for _ in range(sessions)]


@contextmanager
def monolith(stage: Stage, *, processes: int = 1) -> Iterator[Monolith]:
    """Run so many processes of the monolith, on one database of its own; raises Missing without Node."""
    node = shutil.which("node")
    if node is None or not (PEERS / "node_modules" / "installed").exists():
        raise Missing("Node, or what the monolith needs, is not here: `make bench` installs the latter")
    url = stage.database(unique("monolith"))
    asyncio.run(execute(url, (PEERS / "schema.sql").read_text()))
    environment = {"DATABASE_URL": url, "JWT_SECRET": SECRET, "NODE_ENV": "production"}
    if processes > 1:
        environment["REDIS_URL"] = stage.valkey.url
    with ExitStack() as stack:
        servers = [_launch(stage, stack, [node, "monolith.js"], environment) for _ in range(processes)]
        yield Monolith(url, servers)


@contextmanager
def echo(stage: Stage) -> Iterator[Echo]:
    """Run python-socketio alone."""
    with ExitStack() as stack:
        yield Echo(_launch(stage, stack, [sys.executable, "echo.py"], {}))


def _launch(stage: Stage, stack: ExitStack, command: list[str], environment: dict[str, str]) -> Server:
    name = unique(command[1])

    def start(port: int) -> Server:
        return launch(
            name,
            [command[0], str(PEERS / command[1])],
            url=f"http://127.0.0.1:{port}",
            says="listening",
            log=stage.folder / f"{name}.log",
            environment={**environment, "PORT": str(port)},
        )

    server = on_a_port(None, start)
    stack.callback(server.stop)
    return server
