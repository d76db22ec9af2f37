"""More processes than one: attendance-services that share the work, and gateways that host nobody."""

import time
from collections.abc import Iterator, Sequence

from redis import Redis

from bench.meter import ports
from bench.plan import Run
from bench.round import play, usual
from bench.rows import Row

BUSY = 2
"""So many gateways have clients; the others are idle."""
PAIRS = 3
"""They cost alike, and one round differs from the next by a tenth: a median of few says that either is slower."""


def services(run: Run) -> Iterator[Row]:
    """One attendance-service against two, on the same load: `PAIRS` times in a round, and in turns the other way round."""
    for number in run.rounds():
        for pair in range(PAIRS):
            yield from _services(run, (1, 2) if (number + pair) % 2 == 0 else (2, 1))


def _services(run: Run, counts: Sequence[int]) -> Iterator[Row]:
    for count in counts:
        ours = run.cast.ours(attendance=count)
        yield Row("services", f"attendance-service x{count}", ours.name, play(run, ours, usual(run.sizes)))


def width(run: Run) -> Iterator[Row]:
    """The same load on the same two gateways, with others beside them; and what Redis sends to one that hosts nobody.

    Every other round goes from many to few: that spares half of the starts, and nobody is always first.
    """
    with Redis.from_url(run.stage.valkey.url) as redis:
        for number in run.rounds():
            steps = [*run.sizes.width, None]
            for gateways in steps if number % 2 == 0 else reversed(steps):
                yield _without_load(run, redis) if gateways is None else _with_load(run, redis, gateways)


def _with_load(run: Run, redis: "Redis", gateways: int) -> Row:
    ours = run.cast.ours(gateways=gateways)
    busy, idle = Fed(redis, ours.pids("gateway")[:BUSY]), Fed(redis, ours.pids("gateway")[BUSY:])
    figures = play(run, ours, usual(run.sizes), urls=ours.urls[:BUSY])
    figures |= busy.figures("busy gateway") | idle.figures("idle gateway")
    return Row("width", f"{gateways} gateways", ours.name, figures)


def _without_load(run: Run, redis: "Redis") -> Row:
    """As many gateways as there ever are, after a pause."""
    ours = run.cast.ours(gateways=max(run.sizes.width))
    time.sleep(run.sizes.quiet_seconds)
    idle = Fed(redis, ours.pids("gateway")[BUSY:])
    time.sleep(run.sizes.quiet_seconds)
    return Row("width", "no load", ours.name, idle.figures("idle gateway"))


class Fed:
    """What Redis sends to some gateways, from the making of this on."""

    def __init__(self, redis: "Redis", pids: Sequence[int]) -> None:
        self._redis = redis
        self._pids = pids
        self._began = time.monotonic()
        self._before = self._sent()

    def figures(self, who: str) -> dict[str, float]:
        """The bytes a second of one of them, and to how many channels it listens now."""
        if not self._pids:
            return {}
        rate = (self._sent() - self._before) / (time.monotonic() - self._began) / len(self._pids)
        channels = sum(int(each["sub"]) + int(each["psub"]) for each in self._connections()) / len(self._pids)
        return {f"{who} from Redis bytes/s": rate, f"{who} channels": channels}

    def _sent(self) -> int:
        return sum(int(each["tot-net-out"]) for each in self._connections())

    def _connections(self) -> list[dict[str, str]]:
        mine = {f"127.0.0.1:{port}" for pid in self._pids for port in ports(pid)}
        return [each for each in self._redis.client_list() if each["addr"] in mine]
