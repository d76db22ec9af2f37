"""Who is measured, each started when a scenario first asks for it and kept until the run is over.

There is one Rollcall, as its queues have one name on a broker; scenarios ask for it with so many processes of each kind.
"""

from contextlib import ExitStack
from functools import cached_property

from bench.ours import MODULES, Ours, rollcall
from bench.stage import Stage
from bench.theirs import Echo, Monolith, echo, monolith


class Cast:
    """Rollcall and its peers, on the servers of one stage; what is started here ends with the stack."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self._stage = stage
        self._stack = stack

    def ours(self, *, gateways: int = 1, attendance: int = 1) -> Ours:
        """Rollcall with so many gateways and attendance-services, and one session-service."""
        self._ours.scale(dict(zip(MODULES, (1, attendance, gateways), strict=True)))
        return self._ours

    def rest(self) -> None:
        """Stop Rollcall: after a failure nobody knows in what state it is. Who asks for it next gets new processes."""
        if "_ours" in vars(self):
            self._ours.stop()

    @cached_property
    def _ours(self) -> Ours:
        return self._stack.enter_context(rollcall(self._stage))

    @cached_property
    def monolith(self) -> Monolith:
        """P1."""
        return self._stack.enter_context(monolith(self._stage))

    @cached_property
    def pair(self) -> Monolith:
        """P2."""
        return self._stack.enter_context(monolith(self._stage, processes=2))

    @cached_property
    def echo(self) -> Echo:
        """P3."""
        return self._stack.enter_context(echo(self._stage))
