"""An operator's mistake ends the process at once: one line that names the setting, exit status 1, no traceback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from rollcall.launcher import free_port
from tests.conftest import NewDatabase
from tests.system.rig import SECRET, unique

SECONDS = 10
MIGRATED, UNMIGRATED, REFUSING, SILENT, TAKEN = "migrated", "unmigrated", "refusing", "silent", "taken"
GATEWAY = "gateway"
SERVICES = ("session_service", "attendance_service")
AMQP, REDIS, DATABASE = "ROLLCALL_AMQP_URL", "ROLLCALL_REDIS_URL", "ROLLCALL_DATABASE_URL"
JWT, PORT, HEALTH, LEVEL = "ROLLCALL_JWT_SECRET", "ROLLCALL_PORT", "ROLLCALL_HEALTH_PORT", "ROLLCALL_LOG_LEVEL"
SCHEMES = {AMQP: "amqp", REDIS: "redis", DATABASE: "postgresql"}


@dataclass(frozen=True)
class Mistake:
    """One wrong setting. `value` may name a `{place}` that is only known once the servers run; None leaves it out."""

    module: str
    setting: str
    value: str | None
    says: str

    def __str__(self) -> str:
        return f"{self.module}-{self.setting}-{self.value}"


def mistakes() -> Iterator[Mistake]:
    """Every mistake in each of the three processes."""
    for module in (GATEWAY, *SERVICES):
        servers = (AMQP, REDIS) if module == GATEWAY else (AMQP, REDIS, DATABASE)
        for setting in servers:
            scheme = SCHEMES[setting]
            yield Mistake(module, setting, None, "is not set")
            yield Mistake(module, setting, f"{scheme}://localhost:port/", f"must be a URL like {scheme}://")
            yield Mistake(module, setting, f"{scheme}://user:hush@127.0.0.1:{{{REFUSING}}}/x", "cannot")
            yield Mistake(module, setting, f"{scheme}://user:hush@127.0.0.1:{{{SILENT}}}/x", "cannot")
        if module == GATEWAY:
            yield Mistake(module, JWT, None, "is not set")
            yield Mistake(module, PORT, f"{{{TAKEN}}}", "cannot listen on 127.0.0.1:")
        else:
            yield Mistake(module, DATABASE, f"{{{UNMIGRATED}}}", "run `rollcall migrate`")
            yield Mistake(module, DATABASE, f"{{{MIGRATED}}}_no", "cannot open")
        yield Mistake(module, JWT, "s" * 31, "must have at least 32 bytes")
        yield Mistake(module, HEALTH, f"{{{TAKEN}}}", "cannot listen on 127.0.0.1:")
        yield Mistake(module, LEVEL, "chatty", "must be one of debug, info, warning, error")


MISTAKES = tuple(mistakes())


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    out: str
    err: str
    seconds: float


@dataclass
class Starter:
    """Starts a process with everything right but one setting. Few at a time: their seconds are measured."""

    right: Mapping[str, str]
    places: Mapping[str, object]
    pool: ThreadPoolExecutor
    ended: dict[Mistake, Future[Ended]] = field(default_factory=dict)

    def begin(self, mistake: Mistake) -> Future[Ended]:
        """Start one, without waiting."""
        environment = {**self.right, HEALTH: str(free_port()), PORT: str(free_port())}
        environment.pop(mistake.setting, None)
        if mistake.value is not None:
            environment[mistake.setting] = mistake.value.format_map(dict(self.places))
        return self.pool.submit(start, mistake.module, environment)


def start(module: str, environment: Mapping[str, str]) -> Ended:
    """Run a process to its end."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", module],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=3 * SECONDS,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)


@pytest.fixture(scope="module")
def starter(new_database: NewDatabase, redis_url: str, amqp_url: str) -> Iterator[Starter]:
    """Three servers that are there, and places where there is nothing, nobody answers, or somebody else listens."""
    with ExitStack() as stack:
        migrated, unmigrated = (stack.enter_context(new_database()) for _ in range(2))
        taken, silent = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        right = {
            AMQP: amqp_url,
            REDIS: redis_url,
            DATABASE: migrated,
            JWT: SECRET,
            "ROLLCALL_REDIS_PREFIX": unique("test"),
            "ROLLCALL_HOST": "127.0.0.1",
        }
        subprocess.run(
            [sys.executable, "-m", "rollcall", "migrate"],
            env={"PATH": os.environ["PATH"], **right},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        places = {
            MIGRATED: migrated,
            UNMIGRATED: unmigrated,
            REFUSING: free_port(),
            SILENT: silent.getsockname()[1],
            TAKEN: taken.getsockname()[1],
        }
        # Most keep a processor busy for a second; some only wait, for five.
        with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1)) as pool:
            yield Starter(right, places, pool)


@pytest.fixture
def ended(request: pytest.FixtureRequest, starter: Starter) -> Ended:
    """How the mistake of this test ended; all those that will be asked for are begun with the first."""
    if not starter.ended:
        wanted = (getattr(item, "callspec", None) for item in request.session.items)
        mistakes = [spec.params["mistake"] for spec in wanted if spec is not None and "mistake" in spec.params]
        starter.ended.update({mistake: starter.begin(mistake) for mistake in mistakes})
    return starter.ended[request.getfixturevalue("mistake")].result()


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_one_line_that_names_the_setting(mistake: Mistake, ended: Ended) -> None:
    lines = ended.err.splitlines()

    assert len(lines) == 1, ended.err
    assert lines[0].startswith(f"rollcall: {mistake.setting}"), lines[0]
    assert mistake.says in lines[0]
    assert "hush" not in lines[0]
    assert (ended.status, ended.out) == (1, "")
    assert ended.seconds < SECONDS
