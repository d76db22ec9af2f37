"""The servers that everybody is measured on: a durable Postgres, a Valkey and a RabbitMQ, on a folder that goes with them."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from bench.meter import Pids, family
from rollcall.launcher import Server
from rollcall.servers import start_postgres, start_valkey
from tests.rabbitmq import RabbitMQ, start_rabbitmq


@dataclass
class Stage:
    """The servers, and a folder for logs."""

    folder: Path
    postgres: Server
    valkey: Server
    rabbitmq: RabbitMQ

    def database(self, name: str, *, template: str = "template1") -> str:
        """Make a database, empty or as another one is; return its URL."""
        asyncio.run(execute(self.postgres.url, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy'))
        return f"{self.postgres.url.rpartition('/')[0]}/{name}"

    def groups(self) -> dict[str, Pids]:
        """The servers' processes, by name."""
        return {
            "postgres": lambda: family(self.postgres.process.pid),
            "rabbitmq": lambda: [self.rabbitmq.node.process.pid],
            "valkey": lambda: [self.valkey.process.pid],
        }


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
        valkey = start_valkey(folder / "valkey")
        stack.callback(valkey.stop)
        rabbitmq = start_rabbitmq(folder / "rabbitmq")
        stack.callback(rabbitmq.stop)
        yield Stage(folder, postgres, valkey, rabbitmq)
