"""Every scenario by its name, in the order in which they run."""

from collections.abc import Callable, Iterator
from typing import Final

from bench.plan import Run
from bench.rows import Row
from bench.scenarios.growth import growth
from bench.scenarios.joins import burst, joins, quiet, spread, two
from bench.scenarios.replicas import services, width
from bench.scenarios.sockets import fanout, idle, memory

SCENARIOS: Final[dict[str, Callable[[Run], Iterator[Row]]]] = {
    scenario.__name__: scenario
    for scenario in (joins, two, burst, quiet, spread, width, services, fanout, memory, idle, growth)
}
