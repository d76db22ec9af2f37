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
        Scenario(joins, 97),
        Scenario(two, 25),
        Scenario(burst, 35),
        Scenario(quiet, 9),
        Scenario(spread, 22),
        Scenario(width, 69),
        Scenario(services, 50),
        Scenario(fanout, 46),
        Scenario(memory, 30),
        Scenario(idle, 20),
        Scenario(growth, 67),
    )
}
