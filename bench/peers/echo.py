"""The ceiling of our gateway's library: python-socketio alone, on aiohttp and uvloop, which acknowledges and does nothing.

Started as a script with PORT in its environment; says `listening` when it serves.
"""

import asyncio
import os

import socketio
import uvloop
from aiohttp import web


def application() -> web.Application:
    """Acknowledge every command."""
    server = socketio.AsyncServer(async_mode="aiohttp")

    async def acknowledge(event: str, sid: str, payload: dict[str, object]) -> dict[str, object]:
        return {"ok": True, "session_id": payload["session_id"], "message": "Successfully joined attendance session"}

    server.on("*", acknowledge)
    app = web.Application()
    server.attach(app)
    return app


async def main() -> None:
    """Serve until killed."""
    runner = web.AppRunner(application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["PORT"]), backlog=1024).start()
    print("listening", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
