"""What a process takes of the machine, as Linux tells it: memory, and the connections of its clients."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from tests.system.rig import Process

_LISTENS = "0A"
_GONE_SECONDS = 15.0
"""What a client has closed, the gateway closes at once: it does not wait for a ping."""


def rss_kib(process: Process) -> int:
    """How much memory a process has."""
    status = (_folder(process) / "status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def connections(process: Process) -> int:
    """How many TCP connections to its port a gateway holds, also those whose client has gone."""
    return len(_sockets(process) & _on_port(process, int(process.environment["ROLLCALL_PORT"])))


async def no_connections(process: Process) -> None:
    """Wait until a gateway holds none."""
    try:
        async with asyncio.timeout(_GONE_SECONDS):
            while connections(process):  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{connections(process)} connections are still open") from None


def _folder(process: Process) -> Path:
    assert process.popen is not None
    return Path(f"/proc/{process.popen.pid}")


def _sockets(process: Process) -> set[str]:
    """The inodes of its sockets."""
    found = set()
    for descriptor in (_folder(process) / "fd").iterdir():
        # It may be closed meanwhile.
        with suppress(FileNotFoundError):
            found.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    return found


def _on_port(process: Process, port: int) -> set[str]:
    """The inodes of all connections to a port of this machine."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (_folder(process) / "net" / table).read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port and state != _LISTENS:
                found.add(inode)
    return found
