"""The gateway as a process: `python -m gateway`. The only place where its parts meet."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

from aiohttp import web
from redis.asyncio import Redis

from gateway.auth import Tokens
from gateway.calls import Calls
from gateway.engine import NAMESPACES, Json, Manager, Server, quiet_logger
from gateway.http import PREFIX, api, refusals
from gateway.payloads import MAX_FRAME_BYTES
from gateway.relay import Relay
from gateway.requests import GATEWAY, Requests
from gateway.rooms import Rooms
from gateway.sockets import Attendance
from shared.amqp import open_amqp
from shared.bus import Bus
from shared.clock import Clock, utc_now
from shared.errors import StartupFailed
from shared.live import Names, open_redis
from shared.process import (
    configure_logging,
    guarded,
    health_routes,
    run,
    serving,
    serving_health,
    until_told_to_stop,
)
from shared.settings import Settings

HEALTH_PORT = 8090
NEEDS = ("ROLLCALL_AMQP_URL", "ROLLCALL_REDIS_URL", "ROLLCALL_JWT_SECRET")


@asynccontextmanager
async def serve(
    settings: Settings, bus: Bus, redis: Redis, names: Names, clock: Clock
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Serve clients on the settings' port for the length of the block; yield what tells whether it is ready."""
    if not settings.jwt_secret:
        raise StartupFailed("ROLLCALL_JWT_SECRET is not set")
    tokens = Tokens(settings.jwt_secret, audience=settings.jwt_audience, issuer=settings.jwt_issuer)
    calls = Calls(bus, clock)
    await calls.open()
    requests = Requests(calls, clock)
    manager = Manager(settings.redis_url, channel=names.control_channel(), logger=quiet_logger())
    relay = Relay(manager, lambda session_id: requests.read_roll(GATEWAY, session_id))
    rooms = Rooms(manager, redis, names, uuid4().hex, requests.read_changes, relay.tell)
    server = Server(
        async_mode="aiohttp",
        client_manager=manager,
        json=Json,
        namespaces=list(NAMESPACES),
        max_http_buffer_size=MAX_FRAME_BYTES,
        cors_allowed_origins=list(settings.cors_origins) or None,
        logger=quiet_logger(),
        engineio_logger=quiet_logger(),
    )
    for namespace in NAMESPACES:
        server.register_namespace(Attendance(namespace, manager, tokens, requests, rooms, clock))

    async def ready() -> bool:
        return bus.connected

    app = web.Application(middlewares=[refusals])
    app.add_routes(health_routes(ready))
    app.add_subapp(PREFIX, api(tokens, requests, clock))
    server.attach(app)
    async with (
        guarded(rooms.listener.run, rooms.look_after),
        serving(app, settings.host, settings.port, setting="ROLLCALL_PORT"),
    ):
        yield ready


async def main() -> None:
    """Open what is needed, serve until told to stop."""
    settings = Settings.from_env(os.environ, needs=NEEDS, health_port=HEALTH_PORT)
    configure_logging(settings.log_level)
    async with (
        open_redis(settings.redis_url) as redis,
        open_amqp(settings.amqp_url) as bus,
        serve(settings, bus, redis, Names(settings.redis_prefix), utc_now) as ready,
        serving_health(settings.host, settings.health_port, ready),
    ):
        await until_told_to_stop()


if __name__ == "__main__":
    sys.exit(run(main))
