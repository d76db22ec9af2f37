"""The promise, kept while everything fails once: a short run with a fixed seed. `make chaos` is the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.faults import KINDS
from tests.chaos.run import Plan, run

ALLOWED_SECONDS = 600
"""A minute on an idle machine; what is slow here is starting servers and processes again and again."""


@pytest.mark.timeout(ALLOWED_SECONDS)
def test_nothing_answered_is_lost_while_every_kind_of_fault_comes_once(rabbitmq: None, tmp_path: Path) -> None:
    report = run(Plan(seed=20261126, rounds=1, longest_seconds=2.0, quiet_seconds=1.0), tmp_path, print)

    print("\n".join(report.lines()))
    assert report.findings.any == []
    assert [kind for kind in KINDS if not report.faults[kind]] == []
    accepted = {sent.event for sent in report.evidence.journal if sent.accepted}
    assert accepted >= {
        "startAttendanceSession",
        "joinAttendanceSession",
        "markStudentAttendance",
        "bulkUpdateAttendance",
        "clearStudentMark",
        "endAttendanceSession",
        "submitAttendance",
    }
    assert report.evidence.events


@pytest.mark.parametrize(
    ("name", "text"), [("CHAOS_SEED", "abc"), ("CHAOS_SEED", "1.5"), ("CHAOS_SECONDS", "abc"), ("CHAOS_SECONDS", "inf")]
)
def test_what_is_no_number_ends_it_with_one_line(name: str, text: str) -> None:
    command = [sys.executable, "-m", "tests.chaos"]
    done = subprocess.run(command, env=os.environ | {name: text}, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (1, f"{name} must be a number from 0 on, not {text!r}\n")
