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
        Scenario(joins, 125),
        Scenario(two, 25),
        Scenario(burst, 25),
        Scenario(quiet, 15),
        Scenario(spread, 25),
        Scenario(width, 55),
        Scenario(services, 30),
        Scenario(fanout, 35),
        Scenario(memory, 35),
        Scenario(idle, 15),
        Scenario(growth, 90),
    )
}
