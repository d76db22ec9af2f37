"""The servers that everybody is measured on: a durable Postgres, a Valkey and a RabbitMQ, on a folder that goes with them.

Postgres has a database with Rollcall's newest schema, and nothing in it, for copies.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from bench.meter import Pids, family
from rollcall.launcher import Server, ServerFailed
from rollcall.servers import start_postgres, start_valkey
from tests.rabbitmq import RabbitMQ, start_rabbitmq

MIGRATED = "migrated"


@dataclass
class Stage:
    """The servers, and a folder for logs."""

    folder: Path
    postgres: Server
    valkey: Server
    rabbitmq: RabbitMQ

    def database(self, name: str, *, template: str = "template1") -> str:
        """Make a database, empty or as another one is; return its URL."""
        return made(self.postgres, name, template=template)

    def groups(self) -> dict[str, Pids]:
        """The servers' processes, by name."""
        return {
            "postgres": lambda: family(self.postgres.process.pid),
            "rabbitmq": lambda: [self.rabbitmq.node.process.pid],
            "valkey": lambda: [self.valkey.process.pid],
        }


def made(postgres: Server, name: str, *, template: str = "template1") -> str:
    """Make a database; see `Stage.database`."""
    asyncio.run(execute(postgres.url, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy'))
    return f"{postgres.url.rpartition('/')[0]}/{name}"


async def execute(url: str, *statements: str) -> None:
    """Have Postgres do this."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextmanager
def a_stage() -> Iterator[Stage]:
    """Start the servers, and end them; call it from the main thread (see `launch`)."""
    with TemporaryDirectory(prefix="rollcall-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        postgres = start_postgres(folder / "postgres")
        stack.callback(postgres.stop)
        # While the others start.
        migrating = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "rollcall", "migrate"],
                env={"ROLLCALL_DATABASE_URL": made(postgres, MIGRATED)},
                stdout=subprocess.DEVNULL,
            )
        )
        valkey = start_valkey(folder / "valkey")
        stack.callback(valkey.stop)
        rabbitmq = start_rabbitmq(folder / "rabbitmq")
        # What it has goes with the folder: stopping it in good order takes a second for nothing.
        stack.callback(rabbitmq.kill)
        if migrating.wait():
            raise ServerFailed("Rollcall's schema could not be made")
        yield Stage(folder, postgres, valkey, rabbitmq)
