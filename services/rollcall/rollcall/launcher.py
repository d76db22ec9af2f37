"""Starting a server as a child that is ready when we go on and gone when we are: what is alike for every private server.

What one particular server needs (its options, its data) does not live here; see servers.py.
"""

import errno
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rollcall import leash

READY_SECONDS = 30.0
"""How long a server may take until it serves; recovery after a crash is the long case."""

STOP_SECONDS = 15.0
"""How long a server may take to stop before it is killed."""

PORTS = range(10_000, 32_768)
"""Below those that Linux gives to outgoing connections: one of these might take a port before its server does, or while it
is away."""

POLL_SECONDS = 0.01
PORT_TRIES = 5
# Two runs that were given one seed must not choose the same ports.
_dice = random.SystemRandom()
_given = deque[int](maxlen=1000)


class ServerFailed(Exception):
    """A private server could not be started: one line that says which, why, and where its log is."""


class PortTaken(ServerFailed):
    """Someone took the port between our finding it free and the server's binding it."""


@dataclass(frozen=True)
class Server:
    """A running private server and the address where it serves."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    stop_signal: signal.Signals

    def stop(self) -> None:
        """Stop the server in good order and return when it is gone; kill it after STOP_SECONDS. A repeat does nothing."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            kill(self.process)


def launch(
    name: str,
    command: Sequence[str],
    *,
    url: str,
    says: str,
    log: Path,
    stop_signal: signal.Signals = signal.SIGTERM,
    user: str = leash.SAME_USER,
    environment: Mapping[str, str] | None = None,
    ready_seconds: float = READY_SECONDS,
) -> Server:
    """Start a program on the leash and wait until its log `says` that it serves at `url`.

    It gets a process session of its own, so that Ctrl-C in the terminal reaches only us; bare environment and these variables;
    and `stop_signal` when we die. The kernel ties the leash to the *thread* that starts the program, hence only the main thread
    may: RuntimeError elsewhere. Raises PortTaken, or ServerFailed with the log's last lines.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start servers from the main thread: they end with the thread that started them")
    with refusals_of_the_system(name):
        log.write_bytes(b"")
    # Appending: children of a killed predecessor may still write to the same file.
    with refusals_of_the_system(name), log.open("ab") as output:
        process = subprocess.Popen(
            leashed(command, user, stop_signal),
            env=bare_environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(name, process, says, log, ready_seconds)
    except BaseException:
        kill(process)
        raise
    return Server(url, process, log, stop_signal)


def run(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    user: str = leash.SAME_USER,
    text: str = "",
    seconds: float = READY_SECONDS,
) -> None:
    """Run a program to its end, leashed alike, with this text as its input; raise ServerFailed unless it succeeds in time."""
    with refusals_of_the_system(name), log.open("wb") as output:
        try:
            done = subprocess.run(
                leashed(command, user, signal.SIGTERM),
                env=bare_environment(),
                input=text.encode(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise failure(name, f"was not done after {seconds:g} s", log) from None
    if done.returncode != 0:
        raise failure(name, f"ended with status {done.returncode}", log)


def wait_until_ready(name: str, process: subprocess.Popen[bytes], says: str, log: Path, seconds: float) -> None:
    """Return once the log says so; raise ServerFailed when the program has ended, or when it takes longer than this."""
    deadline = time.monotonic() + seconds
    while says not in log.read_text(errors="replace"):
        if process.poll() is not None:
            raise failure(name, f"ended with status {process.returncode}", log)
        if time.monotonic() > deadline:
            raise failure(name, f"was not ready after {seconds:g} s", log)
        time.sleep(POLL_SECONDS)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all of its process group, which it leads; Postgres' children leave when their postmaster is gone."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def on_a_port(port: int | None, start: Callable[[int], Server]) -> Server:
    """Start a server on this port; or, without one, on a free one, and on another when that was taken."""
    if port is not None:
        return start(port)
    for _ in range(PORT_TRIES - 1):
        try:
            return start(free_port())
        except PortTaken:
            continue
    return start(free_port())


def free_port() -> int:
    """A port of 127.0.0.1, one of PORTS, on which nobody listens, and not one of those given here lately."""
    while True:
        port = _dice.choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                _given.append(port)
                return port


def leashed(command: Sequence[str], user: str, death_signal: signal.Signals) -> list[str]:
    """The command line that runs this command as that user (see leash.py), to get that signal when we die."""
    return [
        sys.executable,
        "-I",
        "-S",
        leash.__file__,
        str(os.getpid()),
        str(int(death_signal)),
        user,
        *command,
    ]


def bare_environment() -> dict[str, str]:
    """What a private server inherits: nobody's PGDATA, LD_LIBRARY_PATH or TZ may change what it does."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def failure(name: str, what: str, log: Path) -> ServerFailed:
    """The error for a program that did not come up, with the last lines it said."""
    said = log.read_text(errors="replace")
    last_lines = " / ".join(line.strip() for line in said.strip().splitlines()[-3:])
    port_taken = any(words in said.lower() for words in ("address already in use", "eaddrinuse"))
    kind = PortTaken if port_taken else ServerFailed
    return kind(f"{name} {what}: {last_lines or 'it said nothing'} (log: {log})")


@contextmanager
def refusals_of_the_system(name: str) -> Iterator[None]:
    """Turn what the operating system refuses us (a closed folder, a full disk) into ServerFailed."""
    try:
        yield
    except OSError as error:
        raise ServerFailed(f"{name} could not be started: {error}") from error
