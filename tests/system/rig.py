"""A whole Rollcall for the system tests: real processes on private servers, started and stopped from outside."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from gateway.auth import mint
from rollcall.launcher import free_port
from shared.messages import Role

SECRET = "a secret for the system tests, long enough"
# Our own lines are JSON; a library's, and what asyncio says of a task that died, are plain.
OUR_FAULT = re.compile(r'Traceback|"level": "(error|critical)"|"exception"|^asyncio|never retrieved', re.MULTILINE)
READY_SECONDS = 60
STOP_SECONDS = 15


class ProcessFailed(Exception):
    """A process did not become ready, or did not stop."""


@dataclass
class Process:
    """One process of Rollcall; its log is a file that tests may read."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    ready_url: str
    log: Path
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting; the log goes on."""
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command, env={"PATH": os.environ["PATH"], **self.environment}, stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        """Wait until it says so."""
        deadline = time.monotonic() + READY_SECONDS
        while not answers(self.ready_url):
            if self.popen is None or self.popen.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} is not ready: …{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Ask it to stop; return its exit status. Killed when it does not in time."""
        if self.popen is None:
            return 0
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProcessFailed(f"{self.name} did not stop: …{self.log.read_text()[-2000:]}") from None


@dataclass
class Rig:
    """A running Rollcall: its gateways' addresses, each service's database, and its processes."""

    gateways: list[str]
    database_urls: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def logs(self) -> str:
        """Everything logged so far."""
        return "\n".join(process.log.read_text() for process in self.processes.values())


def answers(url: str) -> bool:
    """Say whether a URL answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def token(subject: str, role: Role, *, name: str | None = None, seconds: float = 3600) -> str:
    """Mint a token that the rigs accept."""
    lifetime = timedelta(seconds=seconds)
    return mint(SECRET, subject=subject, role=role, name=name or subject.title(), lifetime=lifetime, now=datetime.now(UTC))


def unique(prefix: str) -> str:
    """Make an id that no other test uses."""
    return f"{prefix}-{uuid4().hex[:12]}"


Surround = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Makes of the environment of one process that in which it is to run."""


@contextmanager
def running_separately(
    folder: Path,
    *,
    amqp_url: str,
    redis_url: str,
    database_urls: Mapping[str, str],
    replicas: int = 2,
    surround: Surround = dict,
) -> Iterator[Rig]:
    """Run `replicas` of the gateway and of each service as processes of their own, each service on its database."""
    environment = {
        "ROLLCALL_AMQP_URL": amqp_url,
        "ROLLCALL_REDIS_URL": redis_url,
        "ROLLCALL_REDIS_PREFIX": unique("test"),
        "ROLLCALL_JWT_SECRET": SECRET,
        "ROLLCALL_HOST": "127.0.0.1",
        # So that what must not be logged is not logged at any level.
        "ROLLCALL_LOG_LEVEL": "debug",
    }
    for url in {*database_urls.values()}:
        subprocess.run(
            [sys.executable, "-m", "rollcall", "migrate"],
            env={"PATH": os.environ["PATH"], "ROLLCALL_DATABASE_URL": url},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    rig = Rig([], database_urls, environment=environment)
    with ExitStack() as stack:
        for module in ("session_service", "attendance_service", "gateway"):
            for number in range(1, replicas + 1):
                process = process_of(rig, module, f"{module}-{number}", folder)
                process.environment = surround(process.environment)
                stack.callback(process.stop)
                if module == "gateway":
                    rig.gateways.append(f"http://127.0.0.1:{process.environment['ROLLCALL_PORT']}")
                process.start()
        for process in rig.processes.values():
            process.wait_ready()
        yield rig


def process_of(rig: Rig, module: str, name: str, folder: Path, *, command: list[str] | None = None) -> Process:
    """Describe one more process of a rig, not yet started."""
    health, port = free_port(), free_port()
    process = Process(
        name,
        command or [sys.executable, "-m", module],
        {
            **rig.environment,
            **({"ROLLCALL_DATABASE_URL": rig.database_urls[module]} if module in rig.database_urls else {}),
            "ROLLCALL_HEALTH_PORT": str(health),
            "ROLLCALL_PORT": str(port),
        },
        f"http://127.0.0.1:{health}/health/ready",
        folder / f"{name}.log",
    )
    rig.processes[name] = process
    return process


@contextmanager
def running_in_one(folder: Path) -> Iterator[Rig]:
    """Run `rollcall dev`: everything in one process."""
    port = free_port()
    process = Process(
        "rollcall dev",
        [sys.executable, "-m", "rollcall", "dev"],
        {
            "ROLLCALL_DATA_DIR": str(folder / "data"),
            "ROLLCALL_PORT": str(port),
            "ROLLCALL_JWT_SECRET": SECRET,
            "ROLLCALL_LOG_LEVEL": "debug",
            "HOME": str(folder),
        },
        f"http://127.0.0.1:{port}/health/ready",
        folder / "dev.log",
    )
    url = f"http://127.0.0.1:{port}"
    process.start()
    try:
        process.wait_ready()
        yield Rig([url, url], processes={"dev": process})
    finally:
        process.stop()
