"""A whole crowd goes at once, as when a building loses its network: nobody else waits for it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

CROWD = 5_000
STALL_MS = 100


@asynccontextmanager
async def running(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module as a process for the length of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    """Read the next line it says."""
    assert process.stdout
    return (await process.stdout.readline()).decode().strip()


async def seen(gateway: asyncio.subprocess.Process) -> dict[str, Any]:
    """Ask a gateway how it has fared since the last time."""
    assert gateway.stdin
    gateway.stdin.write(b"\n")
    answer: dict[str, Any] = json.loads(await line(gateway))
    return answer


@pytest.mark.timeout(300)
async def test_5000_sockets_that_leave_at_once_stall_the_loop_for_less_than_100_ms(redis_url: str) -> None:
    async with running("tests.system.lagging", redis_url) as gateway:
        url = await line(gateway)
        async with running("tests.system.crowd", url, str(CROWD)) as crowd:
            assert await line(crowd) == "in"
            assert (await seen(gateway))["connections"] == CROWD
            crowd.kill()
            await crowd.wait()
            stalls: list[dict[str, Any]] = []
            async with asyncio.timeout(60):
                while not stalls or stalls[-1]["connections"]:
                    stalls.append(await seen(gateway))
                    await asyncio.sleep(0.05)
            stalls.append(await seen(gateway))
    assert max(stall["stall_ms"] for stall in stalls) < STALL_MS, stalls
