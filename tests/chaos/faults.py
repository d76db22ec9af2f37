"""What may go wrong, and how it is put right. Each fault is a `with`: wrong inside, right afterwards.

Three lanes run beside each other, so that faults overlap: one for servers, one for processes, one for networks. Within a
lane they come one after the other, each kind once before any comes twice, in an order that the seed decides.
"""

import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from subprocess import TimeoutExpired

from redis import Redis

from tests.chaos.poison import Poisoner
from tests.chaos.world import World
from tests.proxy import Proxy
from tests.system import dying
from tests.system.rig import Process

SERVICES = ("session_service", "attendance_service")
DEATH_SECONDS = 15.0
"""How long a process that is to die at a point is given to come by there."""

MEMORY_LIMIT = "vm_memory_monitor, set_vm_memory_high_watermark"
DISK_LIMIT = "rabbit_disk_monitor, set_disk_free_limit"
GOING_SECONDS = 30.0
"""What docs/decisions/0015 allows a process to be gone in."""
TRIES = 6
"""How often a fault that has not come about is tried again at once."""


class NotInjected(Exception):
    """The fault did not come about: nothing passed the point where it lay."""


@dataclass
class Trouble:
    """What faults need: the world, the dice, and how long each lasts at most."""

    world: World
    poisoner: Poisoner
    chance: random.Random
    longest_seconds: float

    def last(self) -> None:
        """Let a fault last."""
        time.sleep(self.chance.uniform(0.2, 1.0) * self.longest_seconds)


Fault = Callable[[Trouble], AbstractContextManager[str]]
"""Yields what it has done, in words."""


# Servers


@contextmanager
def _server_restarted(trouble: Trouble, name: str, end: Callable[[], None]) -> Iterator[str]:
    end()
    try:
        yield name
    finally:
        trouble.world.start_server(name)


def broker_restarted(trouble: Trouble) -> AbstractContextManager[str]:
    return _server_restarted(trouble, "rabbitmq", trouble.world.servers["rabbitmq"].stop)


def broker_killed(trouble: Trouble) -> AbstractContextManager[str]:
    return _server_restarted(trouble, "rabbitmq", lambda: trouble.world.kill_server("rabbitmq"))


def redis_restarted(trouble: Trouble) -> AbstractContextManager[str]:
    return _server_restarted(trouble, "redis", trouble.world.servers["redis"].stop)


def postgres_restarted(trouble: Trouble) -> AbstractContextManager[str]:
    return _server_restarted(trouble, "postgres", trouble.world.servers["postgres"].stop)


def postgres_killed(trouble: Trouble) -> AbstractContextManager[str]:
    return _server_restarted(trouble, "postgres", lambda: trouble.world.kill_server("postgres"))


@contextmanager
def redis_emptied(trouble: Trouble) -> Iterator[str]:
    """Everything in Redis is gone, and the connections to it stay."""
    redis = Redis.from_url(trouble.world.servers["redis"].url)
    redis.flushall()
    redis.close()
    yield "redis"


@contextmanager
def broker_out_of_memory(trouble: Trouble) -> Iterator[str]:
    """It takes nothing from those who publish, and still delivers."""
    trouble.world.broker.call(MEMORY_LIMIT, "0.00001")
    try:
        yield "rabbitmq"
    finally:
        trouble.world.broker.call(MEMORY_LIMIT, "0.4")


@contextmanager
def broker_out_of_disk(trouble: Trouble) -> Iterator[str]:
    trouble.world.broker.call(DISK_LIMIT, '"100000000MB"')
    try:
        yield "rabbitmq"
    finally:
        trouble.world.broker.call(DISK_LIMIT, '"1MB"')


# Processes


@contextmanager
def gateway_killed(trouble: Trouble) -> Iterator[str]:
    process = trouble.chance.choice(trouble.world.mortal("gateway"))
    with trouble.world.holding(process):
        process.kill()
        yield process.name


def _a_service(trouble: Trouble) -> Process:
    """Choose a process of a service that is to end; when it comes again it goes before the others, or behind them.

    Behind them alone, those that live through the run would do all the work, and whoever ends would end idle.
    """
    module = trouble.chance.choice(SERVICES)
    process = trouble.chance.choice(trouble.world.mortal(module))
    process.command = trouble.chance.choice(([sys.executable, "-m", module], dying.command(module)))
    return process


@contextmanager
def service_killed(trouble: Trouble) -> Iterator[str]:
    process = _a_service(trouble)
    with trouble.world.holding(process):
        process.kill()
        yield process.name


@contextmanager
def _frozen(trouble: Trouble, *modules: str) -> Iterator[str]:
    process = trouble.chance.choice(trouble.world.processes(*modules))
    assert process.popen is not None
    process.popen.send_signal(signal.SIGSTOP)
    try:
        yield process.name
    finally:
        process.popen.send_signal(signal.SIGCONT)


def gateway_frozen(trouble: Trouble) -> AbstractContextManager[str]:
    return _frozen(trouble, "gateway")


def service_frozen(trouble: Trouble) -> AbstractContextManager[str]:
    return _frozen(trouble, *SERVICES)


@contextmanager
def service_terminated(trouble: Trouble) -> Iterator[str]:
    process = _a_service(trouble)
    with trouble.world.holding(process):
        process.stop(GOING_SECONDS)
        yield process.name


@contextmanager
def _dies(trouble: Trouble, point: str) -> Iterator[str]:
    """A service is replaced by one that dies when it comes by the point, and then by a sound one.

    One that finds its servers away ends before that, and is started again, as any other would be.
    """
    # attendance-service comes by more often.
    module = trouble.chance.choices(SERVICES, (1, 3))[0]
    process = trouble.chance.choice(trouble.world.mortal(module))
    with trouble.world.holding(process):
        process.kill()
        sound, process.command = process.command, dying.command(module, point)
        try:
            until = time.monotonic() + DEATH_SECONDS
            ends = [_ended(process, until)]
            while ends[-1] not in (None, -signal.SIGKILL):
                ends.append(_ended(process, until))
        finally:
            process.command = sound
        if ends[-1] is None:
            process.kill()
            raise NotInjected(f"{process.name} did not come by, after it had ended with {ends[:-1]}")
        yield process.name


def _ended(process: Process, until: float) -> int | None:
    """Start a process, and tell with what it ended; None when it still runs at that time of the monotonic clock."""
    process.start()
    assert process.popen is not None
    try:
        return process.popen.wait(max(0, until - time.monotonic()))
    except TimeoutExpired:
        return None


def dies_between_commit_and_event(trouble: Trouble) -> AbstractContextManager[str]:
    return _dies(trouble, "between commit and event")


def dies_between_event_and_acknowledgement(trouble: Trouble) -> AbstractContextManager[str]:
    return _dies(trouble, "between event and acknowledgement")


def dies_between_commit_and_answer(trouble: Trouble) -> AbstractContextManager[str]:
    return _dies(trouble, "between commit and answer")


def dies_between_answer_and_event(trouble: Trouble) -> AbstractContextManager[str]:
    return _dies(trouble, "between answer and event")


# Networks


def _way(trouble: Trouble) -> tuple[str, Proxy]:
    ways = [way for way, proxy in trouble.world.proxies.items() if proxy.connections]
    if not ways:
        raise NotInjected("nobody is connected")
    way = trouble.chance.choice(ways)
    return trouble.world.name_of(way), trouble.world.proxies[way]


async def _tell(do: Callable[[], None]) -> None:
    do()


@contextmanager
def _network(trouble: Trouble, wrong: Callable[[Proxy], None], right: Callable[[Proxy], None]) -> Iterator[str]:
    name, proxy = _way(trouble)
    trouble.world.loop.do(_tell(lambda: wrong(proxy)))
    try:
        yield f"between {name}"
    finally:
        trouble.world.loop.do(_tell(lambda: right(proxy)))


def _nothing(proxy: Proxy) -> None:
    """A fault that passes by itself."""


def connections_cut(trouble: Trouble) -> AbstractContextManager[str]:
    return _network(trouble, Proxy.cut, _nothing)


def connections_half_open(trouble: Trouble) -> AbstractContextManager[str]:
    return _network(trouble, Proxy.half_open, _nothing)


def network_frozen(trouble: Trouble) -> AbstractContextManager[str]:
    return _network(trouble, Proxy.freeze, Proxy.thaw)


def network_slow(trouble: Trouble) -> AbstractContextManager[str]:
    seconds = trouble.chance.choice((0.02, 0.1, 0.3))
    return _network(trouble, lambda proxy: proxy.slow(seconds), lambda proxy: proxy.slow(0.0))


@contextmanager
def connections_refused(trouble: Trouble) -> Iterator[str]:
    name, proxy = _way(trouble)
    trouble.world.loop.do(_tell(proxy.close))
    try:
        yield f"between {name}"
    finally:
        trouble.world.loop.do(proxy.open())


@contextmanager
def queue_poisoned(trouble: Trouble) -> Iterator[str]:
    """Messages that cannot be handled, one of them in one message with a sound one."""
    yield trouble.poisoner.poison(trouble.chance)


assert len(dying.POINTS) == 4, "each point to die at is a fault here"
LANES: dict[str, tuple[Fault, ...]] = {
    "servers": (
        broker_restarted,
        redis_restarted,
        postgres_killed,
        broker_out_of_memory,
        redis_emptied,
        broker_killed,
        postgres_restarted,
        broker_out_of_disk,
    ),
    "processes": (
        gateway_killed,
        service_killed,
        gateway_frozen,
        service_frozen,
        service_terminated,
        dies_between_commit_and_event,
        dies_between_event_and_acknowledgement,
        dies_between_commit_and_answer,
        dies_between_answer_and_event,
    ),
    "networks": (
        connections_cut,
        connections_half_open,
        connections_refused,
        network_frozen,
        network_slow,
        queue_poisoned,
    ),
}
KINDS = tuple(fault.__name__.replace("_", " ") for lane in LANES.values() for fault in lane)


@dataclass
class Lane:
    """One lane of faults; `run` it in a thread of its own, that of the servers in the main one."""

    name: str
    trouble: Trouble
    quiet_seconds: float
    say: Callable[[str], None]
    done: Counter[str] = field(default_factory=Counter)
    failed: BaseException | None = None

    def run(self, over: threading.Event, rounds: int | None = None) -> None:
        """Let faults come until it is over, or every kind so many times; what breaks this itself is kept in `failed`."""
        try:
            for fault in self._kinds(rounds):
                if over.wait(self.trouble.chance.uniform(0.2, 1.0) * self.quiet_seconds):
                    return
                self._once(fault)
        except Exception as error:
            self.failed = error
            over.set()

    def _kinds(self, rounds: int | None) -> Iterator[Fault]:
        for _ in range(rounds) if rounds else count():
            bag = list(LANES[self.name])
            self.trouble.chance.shuffle(bag)
            yield from bag

    def _once(self, fault: Fault) -> None:
        kind = fault.__name__.replace("_", " ")
        for _ in range(TRIES):
            began = time.monotonic()
            try:
                with fault(self.trouble) as what:
                    self.trouble.last()
            except NotInjected as error:
                self.say(f"{kind}: not this time, {error}")
            else:
                self.done[kind] += 1
                self.say(f"{kind}: {what}, {time.monotonic() - began:.1f} s")
                return
