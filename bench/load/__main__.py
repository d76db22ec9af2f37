"""The load generator as a process: `python -m bench.load` reads a command a line, does it, and answers with a line.

A command is `{"do": method, …arguments}`, an answer `{"ok": what it found}` or `{"failed": why}`. It ends with its input.
"""

import asyncio
import json
import sys

import msgspec
import uvloop

from bench.load.generator import Failed, Generator


async def main() -> None:
    """Do what is asked, one thing after the other."""
    loop, generator = asyncio.get_running_loop(), Generator()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            answer = {"ok": await getattr(generator, command.pop("do"))(**command)}
        except (Failed, OSError) as failed:
            answer = {"failed": str(failed)}
        print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
