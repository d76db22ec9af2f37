"""An operator's mistake ends the process at once: one line that names the setting, exit status 1, no traceback."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from rollcall.launcher import free_port
from tests.conftest import NewDatabase
from tests.system.rig import SECRET, unique
from tests.system.starting import Ended

SECONDS = 10
MIGRATED, UNMIGRATED, REFUSING, SILENT, TAKEN = "migrated", "unmigrated", "refusing", "silent", "taken"
GATEWAY = "gateway"
SERVICES = ("session_service", "attendance_service")
AMQP, REDIS, DATABASE = "ROLLCALL_AMQP_URL", "ROLLCALL_REDIS_URL", "ROLLCALL_DATABASE_URL"
JWT, PORT, HEALTH, LEVEL = "ROLLCALL_JWT_SECRET", "ROLLCALL_PORT", "ROLLCALL_HEALTH_PORT", "ROLLCALL_LOG_LEVEL"
JWKS, PROXIES = "ROLLCALL_JWT_JWKS_URL", "ROLLCALL_TRUSTED_PROXIES"
AUTO_END = "ROLLCALL_AUTO_END_MINUTES"
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
        yield Mistake(module, REDIS, "redis://127.0.0.1/?protocol=2", "an option is wrong: protocol can only be 3")
        yield Mistake(module, REDIS, "redis://127.0.0.1/?protocol=new", "an option is wrong")
        if module == GATEWAY:
            yield Mistake(module, JWT, None, "is not set, and neither is ROLLCALL_JWT_JWKS_URL")
            yield Mistake(module, PROXIES, "nginx", "must be networks like 10.0.0.0/8")
            yield Mistake(module, JWKS, f"http://user:hush@127.0.0.1:{{{REFUSING}}}/keys", "it cannot be reached")
            yield Mistake(module, JWKS, f"http://user:hush@127.0.0.1:{{{SILENT}}}/keys", "no answer within 5 s")
            yield Mistake(module, JWKS, "keys.json", "must be a URL like http://")
            yield Mistake(module, PORT, f"{{{TAKEN}}}", "cannot listen on 127.0.0.1:")
        else:
            yield Mistake(module, DATABASE, f"{{{UNMIGRATED}}}", "run `rollcall migrate`")
            yield Mistake(module, DATABASE, f"{{{MIGRATED}}}_no", "cannot open")
        yield Mistake(module, JWT, "s" * 31, "must have at least 32 bytes")
        yield Mistake(module, HEALTH, f"{{{TAKEN}}}", "cannot listen on 127.0.0.1:")
        yield Mistake(module, LEVEL, "chatty", "must be one of debug, info, warning, error")
        yield Mistake(module, AUTO_END, "soon", "must be off, or minutes from 0 to 1440, not 'soon'")


MISTAKES = tuple(mistakes())


@dataclass(frozen=True)
class Starter:
    """Starts processes with everything right but one setting."""

    right: Mapping[str, str]
    places: Mapping[str, object]
    folder: Path

    def environment(self, mistake: Mistake) -> dict[str, str]:
        """The settings with this mistake in them."""
        environment = {**self.right, HEALTH: str(free_port()), PORT: str(free_port()), "PATH": os.environ["PATH"]}
        environment.pop(mistake.setting, None)
        if mistake.setting == JWKS:
            environment.pop(JWT)
        if mistake.value is not None:
            environment[mistake.setting] = mistake.value.format_map(dict(self.places))
        return environment

    def start(self, module: str) -> dict[Mistake, Ended]:
        """Make every mistake in one module, and return how each ended."""
        mistakes = [mistake for mistake in MISTAKES if mistake.module == module]
        (folder := self.folder / module).mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.system.starting", module, folder],
            input=json.dumps([self.environment(mistake) for mistake in mistakes]),
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            timeout=6 * SECONDS,
            check=True,
        )
        return dict(zip(mistakes, (Ended(**each) for each in json.loads(done.stdout)), strict=True))


@pytest.fixture(scope="module")
def starter(
    tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase, redis_url: str, amqp_url: str
) -> Iterator[Starter]:
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
        yield Starter(right, places, tmp_path_factory.mktemp("starting"))


@pytest.fixture(scope="module")
def endings(starter: Starter) -> dict[Mistake, Ended]:
    """How each mistake ended; the modules are started side by side, since some only wait, for five seconds."""
    modules = (GATEWAY, *SERVICES)
    with ThreadPoolExecutor(len(modules)) as pool:
        return {mistake: ended for each in pool.map(starter.start, modules) for mistake, ended in each.items()}


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_one_line_that_names_the_setting(mistake: Mistake, endings: dict[Mistake, Ended]) -> None:
    ended = endings[mistake]
    lines = ended.err.splitlines()

    assert len(lines) == 1, ended.err
    assert lines[0].startswith(f"rollcall: {mistake.setting}"), lines[0]
    assert mistake.says in lines[0]
    assert "hush" not in lines[0]
    assert (ended.status, ended.out) == (1, "")
    assert ended.seconds < SECONDS


@pytest.mark.parametrize("module", [GATEWAY, *SERVICES])
def test_it_is_the_same_where_the_code_is_still_to_be_loaded(module: str, starter: Starter) -> None:
    """As it is in earnest; above, the code has been loaded before."""
    mistake = next(each for each in MISTAKES if (each.module, each.setting) == (module, HEALTH))
    done = subprocess.run(
        [sys.executable, "-m", module],
        env=starter.environment(mistake),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith(f"rollcall: {HEALTH}: {mistake.says}")
