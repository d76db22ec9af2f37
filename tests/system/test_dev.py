"""`make run`, that is `rollcall dev`: it starts anywhere, keeps its data, says what to paste, and leaves nothing behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rollcall.launcher import free_port
from tests.system.family import descendants, eventually
from tests.system.rig import answers
from tests.system.surroundings import Surroundings
from tests.system.talk import calling

ROOT = Path(__file__).parents[2]
LOADS, BESIDES_SECONDS = 1.5, 1.5
"""A warm start may take as long as so many loads of the code, however fast the machine is now, and so long besides."""


class Run:
    """One `rollcall dev`, with what it printed."""

    def __init__(self, process: subprocess.Popen[str], url: str, environment: dict[str, str]) -> None:
        self.process = process
        self.url = url
        self.environment = environment
        self.screen = ""

    def read_until(self, text: str) -> None:
        assert self.process.stdout
        while text not in self.screen:
            line = self.process.stdout.readline()
            assert line, f"it stopped: {self.screen} {self.process.stderr.read() if self.process.stderr else ''}"
            self.screen += line

    def pasted(self, verb: str) -> list[str]:
        """The line to paste, as it would be run from the project's folder."""
        found = re.search(rf"rollcall (try {verb} .*)", self.screen)
        assert found, self.screen
        return [sys.executable, "-m", "rollcall", *found[1].split()]


@contextmanager
def a_run(folder: Path, where: Surroundings | None = None, **settings: str) -> Iterator[Run]:
    """Start it as a newcomer would, with these settings in its terminal only; killed at the latest at the end."""
    where = where or Surroundings()
    folder.mkdir(exist_ok=True)
    os.chown(folder, where.user, -1)
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "ROLLCALL_DATA_DIR": str(folder / "data"),
        "ROLLCALL_PORT": str(port),
        **where.environment,
    }
    with subprocess.Popen(
        [*where.prefix, sys.executable, "-m", "rollcall", "dev"],
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        run = Run(process, f"http://127.0.0.1:{port}", environment)
        try:
            run.read_until("try join")
            yield run
        finally:
            process.kill()


def test_a_newcomer_pastes_two_lines_and_sees_the_roll_fill(tmp_path: Path) -> None:
    with a_run(tmp_path / "home") as run:
        assert run.url in run.screen
        with subprocess.Popen(run.pasted("start"), env=run.environment, stdout=subprocess.PIPE, text=True) as teacher:
            assert teacher.stdout
            assert "0 of 24 here" in teacher.stdout.readline()
            joined = subprocess.run(run.pasted("join"), env=run.environment, capture_output=True, text=True, check=False)
            assert "Successfully joined attendance session: present" in joined.stdout
            assert "Grace Hopper" in teacher.stdout.readline()
            ended = [*run.pasted("start")]
            ended[ended.index("start")] = "end"
            assert subprocess.run(ended, env=run.environment, check=False, capture_output=True).returncode == 0
            assert teacher.wait(10) == 0


def test_an_interpreter_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    command = ["make", "--file", str(ROOT / "Makefile"), "--directory", str(tmp_path), "install", "PYTHON=python9"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)

    said = [line for line in (made.stdout + made.stderr).splitlines() if not line.startswith("make")]
    assert said == ["there is no python9 here; say which Python with PYTHON=…"]


@contextmanager
def a_watching_teacher(run: Run) -> Iterator[subprocess.Popen[str]]:
    """A `try start` that has started its session; killed at the latest at the end."""
    with subprocess.Popen(
        run.pasted("start"), env=run.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as teacher:
        try:
            assert teacher.stdout
            assert "0 of 24 here" in teacher.stdout.readline()
            yield teacher
        finally:
            teacher.kill()


@pytest.mark.parametrize("server", ["up", "down"])
def test_ctrl_c_ends_watching_quietly(tmp_path: Path, server: str) -> None:
    """Also while the client tries to reach a server that has gone."""
    with a_run(tmp_path / "home") as run, a_watching_teacher(run) as teacher:
        if server == "down":
            run.process.send_signal(signal.SIGINT)
            assert run.process.wait(10) == 0

        teacher.send_signal(signal.SIGINT)

        assert teacher.wait(10) == 130
        assert teacher.stderr
        assert teacher.stderr.read() == ""


def test_who_pastes_without_the_setting_that_it_runs_with_is_told_why(tmp_path: Path) -> None:
    with a_run(tmp_path / "home", ROLLCALL_JWT_AUDIENCE="school", ROLLCALL_JWT_SECRET="s" * 32) as run:
        assert "First set there, as they are set here: ROLLCALL_JWT_SECRET, ROLLCALL_JWT_AUDIENCE.\n" in run.screen

        def join(**settings: str) -> subprocess.CompletedProcess[str]:
            environment = run.environment | {"ROLLCALL_JWT_SECRET": "s" * 32} | settings
            return subprocess.run(run.pasted("join"), env=environment, capture_output=True, text=True, check=False)

        missing = 'Token is missing the "aud" claim'
        assert join().stderr == f"rollcall: The token is not valid: {missing} (unauthenticated)\n"
        # A good token: nobody has started the session yet.
        assert "session_not_active" in join(ROLLCALL_JWT_AUDIENCE="school").stdout


def test_it_runs_and_is_killed_in_any_surroundings(tmp_path: Path, surroundings: Surroundings) -> None:
    """As we are, as an ordinary user, and as root where user namespaces are refused; `kill -9` leaves no process behind."""
    with a_run(tmp_path / "home", surroundings) as run:
        assert answers(f"{run.url}/health/ready")
        family = descendants(run.process.pid)
        assert {"postgres", "valkey-server"} <= {process.name() for process in family}

        run.process.kill()

        eventually(lambda: not any(process.lives() for process in family), 5, "servers outlive a killed run")


async def test_ctrl_c_stops_everything_and_a_second_run_keeps_the_data(tmp_path: Path) -> None:
    with a_run(tmp_path / "home") as run:
        session_id = run.pasted("start")[5]
        tokens = re.findall(r"^  (eyJ\S+)$", run.screen, re.MULTILINE)
        async with calling(run.url, tokens[0]) as teacher, calling(run.url, tokens[1]) as student:
            assert (await teacher.ask("startAttendanceSession", {"session_id": session_id}))["ok"]
            first = await student.ask("joinAttendanceSession", {"session_id": session_id})
        family = descendants(run.process.pid)
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(10) == 0
        eventually(lambda: not any(process.lives() for process in family), 5, "servers outlive Ctrl-C")
        assert run.process.stderr
        assert run.process.stderr.read() == ""

    began = time.monotonic()
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", "import rollcall.__main__"], check=True)
    loading_seconds = time.monotonic() - began
    began = time.monotonic()
    with a_run(tmp_path / "home") as run:
        assert time.monotonic() - began < LOADS * loading_seconds + BESIDES_SECONDS
        async with calling(run.url, tokens[1]) as student:
            again = await student.ask("joinAttendanceSession", {"session_id": session_id})
    assert (again["joined_at"], again["seq"]) == (first["joined_at"], first["seq"])
