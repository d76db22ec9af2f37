"""The gateway as a process: `python -m gateway`. The only place where its parts meet."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple
from uuid import uuid4

from aiohttp import web
from redis.asyncio import Redis

from gateway.arrivals import Arrival
from gateway.auth import Tokens
from gateway.calls import Calls
from gateway.commands import Commands
from gateway.courses import Courses
from gateway.cuts import Cuts
from gateway.door import Door
from gateway.drain import Drain
from gateway.engine.departures import Departures
from gateway.engine.links import CONNECT_SECONDS
from gateway.engine.server import NAMESPACES, PATH, Json, Manager, Server, quiet_logger
from gateway.errands import Errands
from gateway.http import PREFIX, admits, api, cors, docs, refusals
from gateway.joins import Joins
from gateway.keys import open_keys
from gateway.payloads import MAX_FRAME_BYTES
from gateway.presence import Presence
from gateway.relay import Relay
from gateway.requests import GATEWAY, Requests
from gateway.rooms import Rooms
from gateway.sockets import Attendance
from gateway.usage import Usage
from gateway.watchers import Watchers
from shared.amqp.bus import open_amqp
from shared.bus import Bus
from shared.clock import Clock, utc_now
from shared.live import Listener, Names, open_redis
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
NEEDS = ("ROLLCALL_AMQP_URL", "ROLLCALL_REDIS_URL")


class Gateway(NamedTuple):
    """A gateway that serves: whether it is ready, how it goes away (see `Drain.leave`), and how many connections it has."""

    ready: Callable[[], Awaitable[bool]]
    leave: Callable[[], Awaitable[None]]
    connections: Callable[[], int]


@asynccontextmanager
async def serve(
    settings: Settings,
    bus: Bus,
    redis: Redis,
    names: Names,
    clock: Clock,
    *,
    ping_interval_seconds: float = 25,
    ping_timeout_seconds: float = 20,
    connect_seconds: float = CONNECT_SECONDS,
) -> AsyncIterator[Gateway]:
    """Serve clients on the settings' port for the length of the block; who has time has it `leave` before the end."""
    async with open_keys(settings.jwt_secret, settings.jwt_jwks_url) as keys:
        tokens = Tokens(keys, audience=settings.jwt_audience, issuer=settings.jwt_issuer)
        server_options = {
            "ping_interval": ping_interval_seconds,
            "ping_timeout": ping_timeout_seconds,
            "connect_seconds": connect_seconds,
        }
        async with _serving(settings, tokens, bus, redis, names, clock, server_options) as gateway:
            yield gateway


@asynccontextmanager
async def _serving(
    settings: Settings,
    tokens: Tokens,
    bus: Bus,
    redis: Redis,
    names: Names,
    clock: Clock,
    server_options: Mapping[str, float],
) -> AsyncIterator[Gateway]:
    usage = Usage(redis, names)
    door = Door(tokens, usage, settings.trusted_proxies)
    calls = Calls(bus, clock)
    await calls.open()
    requests = Requests(calls, clock)
    manager = Manager(settings.redis_url, channel=names.control_channel(), logger=quiet_logger())
    gateway_id = uuid4().hex
    listener = Listener(redis, names.heartbeat_channel(gateway_id))
    relay = Relay(partial(requests.read_roll, GATEWAY))
    errands = Errands()
    rooms = Rooms(redis, names, listener, errands, requests.read_changes, relay.tell, relay.tell_left, relay.tell_back)
    presence = Presence(redis, names, listener, gateway_id, clock, rooms.staffed)
    watchers = Watchers(relay.tell_turn, relay.tell_active)
    courses = Courses(
        names, listener, errands, rooms, watchers, presence, requests.read_standing, requests.read_active_sessions
    )
    joins = Joins(requests, rooms, courses, presence, clock)
    commands = Commands(tokens, requests, rooms, courses, watchers, presence, joins).table()
    departures = Departures()
    server = Server(
        async_mode="aiohttp",
        client_manager=manager,
        json=Json,
        namespaces=list(NAMESPACES),
        max_http_buffer_size=MAX_FRAME_BYTES,
        cors_allowed_origins=admits(settings.cors_origins),
        logger=quiet_logger(),
        engineio_logger=quiet_logger(),
        origin=door.origin,
        departures=departures,
        **server_options,
    )
    namespaces = [Attendance(name, manager, errands, door, commands, rooms, watchers, presence, clock) for name in NAMESPACES]
    for namespace in namespaces:
        server.register_namespace(namespace)

    def dismiss(user_id: str) -> list[str]:
        return [connection for namespace in namespaces for connection in namespace.dismiss(user_id)]

    cuts = Cuts(redis, names, listener, gateway_id, dismiss, server.eio.disconnect)
    drain = Drain(server, manager, presence)

    async def ready() -> bool:
        return bus.connected and not drain.begun

    app = web.Application(middlewares=[drain.at_the_door, cors(settings.cors_origins, PREFIX), refusals])
    app.add_routes([*health_routes(ready), *docs()])
    app.add_subapp(PREFIX, api(door, requests, cuts, clock))
    server.attach(app, PATH.strip("/"))
    arrive = partial(Arrival, departures=departures, seconds=server_options["connect_seconds"])
    async with (
        guarded(
            errands.run,
            listener.run,
            rooms.look_after,
            courses.look_after,
            presence.run,
            usage.run,
            door.look_after,
            cuts.run,
            *(namespace.look_after for namespace in namespaces),
        ),
        serving(app, settings.host, settings.port, setting="ROLLCALL_PORT", protocol=arrive),
    ):
        try:
            yield Gateway(ready, drain.leave, lambda: len(server.eio.sockets))
        finally:
            await cuts.leave()


async def main() -> None:
    """Open what is needed, serve until told to stop, then send the clients to other gateways."""
    settings = Settings.from_env(os.environ, needs=NEEDS, health_port=HEALTH_PORT)
    configure_logging(settings.log_level)
    async with (
        open_redis(settings.redis_url) as redis,
        open_amqp(settings.amqp_url) as bus,
        serve(settings, bus, redis, Names(settings.redis_prefix), utc_now) as gateway,
        serving_health(settings.host, settings.health_port, gateway.ready),
    ):
        await until_told_to_stop()
        await gateway.leave()


if __name__ == "__main__":
    sys.exit(run(main))
