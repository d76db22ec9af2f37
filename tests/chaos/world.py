"""Everything that may fail: private servers, Rollcall's processes on them, and a proxy on every way between two of them.

Servers live and die with the main thread (see `launch`), which may wait for one; what is asynchronous (proxies, clients)
therefore runs on a loop in a thread of its own.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rollcall.launcher import Server, free_port, kill
from rollcall.servers import start_postgres, start_valkey
from tests.proxy import Proxy
from tests.rabbitmq import RabbitMQ, start_rabbitmq
from tests.system.rig import Process, Rig, running_separately

T = TypeVar("T")
SUPERVISION_SECONDS = 0.5
SERVERS = ("postgres", "redis", "rabbitmq")
SETTINGS = {"postgres": "ROLLCALL_DATABASE_URL", "redis": "ROLLCALL_REDIS_URL", "rabbitmq": "ROLLCALL_AMQP_URL"}


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run it there, meanwhile."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there, and wait for what it returns."""
        return self.begin(work).result()

    def close(self) -> None:
        """Stop the loop, once it is done with everything."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class World:
    """The servers by name, the processes, and the proxies by (process, server) and by (client, gateway)."""

    folder: Path
    loop: Loop
    ports: dict[str, int]
    servers: dict[str, Server | RabbitMQ] = field(default_factory=dict)
    rig: Rig = field(default_factory=lambda: Rig([]))
    proxies: dict[tuple[str, str], Proxy] = field(default_factory=dict)
    gateways: list[str] = field(default_factory=list)
    """Where clients find the gateways: behind proxies."""

    held: set[str] = field(default_factory=set)
    """The processes that nobody starts again for now."""

    spared: set[str] = field(default_factory=set)
    """The processes that live through the run, so that what they leak shows: no fault may end them."""

    _starting: threading.Lock = field(default_factory=threading.Lock)
    """The supervisor must not look before, and start after, a fault has taken a process for itself."""

    @contextmanager
    def holding(self, process: Process) -> Iterator[None]:
        """Leave a process as it is inside the block."""
        with self._starting:
            self.held.add(process.name)
        try:
            yield
        finally:
            self.held.discard(process.name)

    @contextmanager
    def supervised(self) -> Iterator[None]:
        """Start every process again that has ended, as an orchestrator does: also one that found its servers away."""
        over = threading.Event()

        def supervise() -> None:
            while not over.wait(SUPERVISION_SECONDS):
                for process in self.rig.processes.values():
                    with self._starting:
                        ended = process.popen is not None and process.popen.poll() is not None
                        if ended and process.name not in self.held:
                            process.start()

        supervisor = threading.Thread(target=supervise, name="supervisor")
        supervisor.start()
        try:
            yield
        finally:
            over.set()
            supervisor.join()

    @property
    def broker(self) -> RabbitMQ:
        """The broker as it runs now."""
        broker = self.servers["rabbitmq"]
        assert isinstance(broker, RabbitMQ)
        return broker

    @property
    def database_url(self) -> str:
        """The way to the database that nothing disturbs."""
        return self.servers["postgres"].url

    def start_server(self, name: str) -> None:
        """Start a server, again on the data it has; Valkey keeps none."""
        data, port = self.folder / name, self.ports[name]
        match name:
            case "postgres":
                self.servers[name] = start_postgres(data, port=port)
            case "redis":
                self.servers[name] = start_valkey(data, port=port)
            case _:
                self.servers[name] = start_rabbitmq(data, port=port)

    def kill_server(self, name: str) -> None:
        """Kill a server as a crash does."""
        server = self.servers[name]
        if isinstance(server, RabbitMQ):
            server.kill()
        else:
            kill(server.process)

    def processes(self, *modules: str) -> list[Process]:
        """The processes of these modules."""
        return [process for process in self.rig.processes.values() if process.name.partition("-")[0] in modules]

    def mortal(self, *modules: str) -> list[Process]:
        """Those of them that a fault may end."""
        return [process for process in self.processes(*modules) if process.name not in self.spared]

    def surround(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        """Lead one process to its servers through proxies of its own."""
        # Its health port is how its proxies are known: it has no name yet.
        who = environment["ROLLCALL_HEALTH_PORT"]
        through = {}
        for server, setting in SETTINGS.items():
            if setting in environment:
                through[setting] = self._proxy((who, server), environment[setting])
        return {**environment, **through, "PYTHONPATH": str(Path(__file__).parents[2])}

    def lead_clients(self) -> None:
        """Put a proxy before each gateway."""
        self.gateways = [self._proxy(("clients", url), url) for url in self.rig.gateways]

    def _proxy(self, way: tuple[str, str], url: str) -> str:
        proxy = self.proxies[way] = Proxy(url)
        self.loop.do(proxy.open())
        return proxy.url if url.startswith(("amqp", "postgres", "redis")) else proxy.url.rstrip("/")

    def name_of(self, way: tuple[str, str]) -> str:
        """Say which way a proxy lies on."""
        who, where = way
        if who == "clients":
            return f"clients and gateway-{1 + self.rig.gateways.index(where)}"
        [name] = [p.name for p in self.rig.processes.values() if p.environment["ROLLCALL_HEALTH_PORT"] == who]
        return f"{name} and {where}"


@contextmanager
def a_world(folder: Path) -> Iterator[World]:
    """Start everything, two of each process, on a durable Postgres; and end it."""
    with ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        world = World(folder, loop, {name: free_port() for name in SERVERS})
        for name in SERVERS:
            world.start_server(name)
            stack.callback(_stop, world, name)
        # After the processes have stopped: they drain through open ways.
        stack.callback(lambda: loop.do(_end(world.proxies.values())))
        world.rig = stack.enter_context(
            running_separately(
                folder,
                amqp_url=world.servers["rabbitmq"].url,
                redis_url=world.servers["redis"].url,
                database_urls=dict.fromkeys(("session_service", "attendance_service"), world.database_url),
                surround=world.surround,
            )
        )
        world.lead_clients()
        yield world


def _stop(world: World, name: str) -> None:
    world.servers[name].stop()


async def _end(proxies: Iterable[Proxy]) -> None:
    await asyncio.gather(*(proxy.end() for proxy in proxies))
