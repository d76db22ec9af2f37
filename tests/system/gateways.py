"""Gateways in this process: with nobody behind them (real ports, a real Redis, a bus in memory; they start in no time), or one
more of a rig's.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType
from uuid import uuid4

import gateway.__main__ as gateway
from rollcall.launcher import free_port
from shared.amqp.bus import open_amqp
from shared.clock import utc_now
from shared.live import Names, open_redis
from shared.memory_bus import MemoryBroker, MemoryBus
from shared.settings import Settings
from tests.system.rig import SECRET, Rig


@asynccontextmanager
async def gateways_alone(
    redis_url: str,
    settings: Mapping[str, str] = MappingProxyType({}),
    *,
    count: int = 2,
    times: Mapping[str, float] = MappingProxyType({}),
) -> AsyncIterator[dict[str, gateway.Gateway]]:
    """Run gateways that share a Redis and a bus, with these settings, and other times than usual; yield them by address."""
    names, broker, gateways = Names(f"test-{uuid4().hex}"), MemoryBroker(), dict[str, gateway.Gateway]()
    async with AsyncExitStack() as stack:
        for _ in range(count):
            # Each has its own connections, as separate processes do.
            redis = await stack.enter_async_context(open_redis(redis_url))
            given = {
                "ROLLCALL_REDIS_URL": redis_url,
                "ROLLCALL_JWT_SECRET": SECRET,
                "ROLLCALL_HOST": "127.0.0.1",
                "ROLLCALL_PORT": str(free_port()),
                **settings,
            }
            settled = Settings.from_env(given)
            bus = MemoryBus(broker)
            stack.push_async_callback(bus.close)
            served = gateway.serve(settled, bus, redis, names, utc_now, **times)
            gateways[f"http://127.0.0.1:{settled.port}"] = await stack.enter_async_context(served)
        yield gateways


@asynccontextmanager
async def one_more_gateway(rig: Rig, **times: float) -> AsyncIterator[str]:
    """Run one more gateway before a rig's services, with other times than usual; yield its address."""
    settings = Settings.from_env({**rig.environment, "ROLLCALL_PORT": str(free_port())})
    async with (
        open_redis(settings.redis_url) as redis,
        open_amqp(settings.amqp_url) as bus,
        gateway.serve(settings, bus, redis, Names(settings.redis_prefix), utc_now, **times),
    ):
        yield f"http://127.0.0.1:{settings.port}"
