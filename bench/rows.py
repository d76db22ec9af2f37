"""What a run finds: rows of figures, each from one round of one case on one system."""

import msgspec


class Row(msgspec.Struct, frozen=True):
    """The figures of one round. Each figure's name ends with its unit."""

    scenario: str
    case: str
    system: str
    figures: dict[str, float]

    def line(self) -> str:
        """Say it in a line."""
        figures = "  ".join(f"{name} {figure:,.4g}" for name, figure in self.figures.items())
        return f"{self.scenario}, {self.case}, {self.system}: {figures}"
