"""A crowd of users, each on a socket: `python -m tests.system.crowd URL COUNT`.

It says `in` when all are connected, and stays until it is killed: then all of them leave at once.
"""

import asyncio
import json
import sys

from tests.system.rig import token
from tests.wire import a_raw_websocket

TOGETHER = 50


async def attend(url: str, user_id: str, door: asyncio.Semaphore, inside: asyncio.Semaphore) -> None:
    """Connect as one user, and listen for ever."""
    async with door:
        client = await a_raw_websocket(url)
        client.send("40" + json.dumps({"token": token(user_id, "student")}))
        await client.until("40")
    inside.release()
    while (packet := await client.next()) is not None:
        if packet == "2":
            client.send("3")


async def main(url: str, count: int) -> None:
    """Bring all in, say so, and stay."""
    door, inside = asyncio.Semaphore(TOGETHER), asyncio.Semaphore(0)
    everybody = [asyncio.create_task(attend(url, f"s{number}", door, inside)) for number in range(count)]
    for _ in everybody:
        await inside.acquire()
    print("in", flush=True)
    await asyncio.gather(*everybody)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
