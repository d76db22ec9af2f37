"""`make bench` at a size that says nothing: only that figures come out of it."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import results
from bench.page import BEGIN, END
from bench.scenarios.table import SCENARIOS

ROOT = Path(__file__).parents[2]
SECONDS = 240


def peers() -> list[str]:
    """The arguments that leave out what this machine cannot run; with CI set it must."""
    installed = ["make", "bench/peers/node_modules/installed"]
    if shutil.which("npm") and (os.environ.get("CI") or not subprocess.run(installed, cwd=ROOT, check=False).returncode):
        subprocess.run(installed, cwd=ROOT, check=True)
        return []
    return ["--only", "rollcall", "--only", "python-socketio"]


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.usefixtures("rabbitmq")
def test_figures_come_out_of_a_bench(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    command = [sys.executable, "-m", "bench", "--small", "--out", str(tmp_path), *peers()]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = results.read(tmp_path / "performance.json")
    assert set(found) == set(SCENARIOS)
    for scenario in found.values():
        assert "rollcall" in scenario.systems()
        assert all(math.isfinite(figure) for row in scenario.rows for figure in row.figures.values())
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    assert "| joins/s |" in page.read_text()
    assert (tmp_path / "performance.svg").read_text().startswith("<svg")
