"""Every scenario by its name, in the order in which they run."""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from bench.plan import Run
from bench.rows import Row
from bench.scenarios.growth import growth
from bench.scenarios.joins import burst, joins, quiet, spread, two
from bench.scenarios.replicas import services, width
from bench.scenarios.sockets import fanout, idle, memory


class Scenario(NamedTuple):
    """What is played, and how many seconds all of its rounds take on two cores that do nothing else."""

    play: Callable[[Run], Iterator[Row]]
    seconds: float


SCENARIOS: Final = {
    scenario.play.__name__: scenario
    for scenario in (
        Scenario(joins, 160),
        Scenario(two, 58),
        Scenario(burst, 30),
        Scenario(quiet, 8),
        Scenario(spread, 19),
        Scenario(width, 60),
        Scenario(services, 43),
        Scenario(fanout, 40),
        Scenario(memory, 30),
        Scenario(idle, 18),
        Scenario(growth, 58),
    )
}
