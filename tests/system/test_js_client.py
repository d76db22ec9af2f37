"""The flow as a browser's library speaks it: socket.io-client itself, driven by js/flow.mjs."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.system.rig import Rig, token
from tests.system.talk import a_lecture, bearer

JS = Path(__file__).parent / "js"
LOCK = JS / "package-lock.json"
SECONDS = 60


class Missing(Exception):
    """What it takes to run JavaScript is not on this machine."""


def ensure_client() -> str:
    """Install socket.io-client beside the driver unless it is there as locked; return Node, or raise Missing."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("node or npm is not on this machine")
    installed = JS / "node_modules" / "installed-from-package-lock.json"
    if not installed.exists() or installed.read_bytes() != LOCK.read_bytes():
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=JS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode:
            raise Missing(f"npm could not install socket.io-client: {done.stdout[-500:]}")
        shutil.copyfile(LOCK, installed)
    return node


@pytest.fixture(scope="module")
def node() -> str:
    """The program, with the client it needs. Where there is none the tests are skipped; with CI set they fail."""
    try:
        return ensure_client()
    except Missing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"LEFT OUT: NO JAVASCRIPT CLIENT WAS TRIED. {missing}")


async def drive(node: str, config: object) -> list[dict[str, Any]]:
    """Run the driver to its end and return its lines."""
    process = await asyncio.create_subprocess_exec(
        node, JS / "flow.mjs", json.dumps(config), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err) == (0, b""), f"{out.decode()}\n{err.decode()}"
    return [json.loads(line) for line in out.splitlines()]


def the(lines: Sequence[dict[str, Any]], **fits: object) -> list[Any]:
    """Pick the payloads of the lines with these entries."""
    return [line["payload"] for line in lines if fits.items() <= line.items()]


@pytest.mark.parametrize("namespace", ["/", "/attendance"])
async def test_the_javascript_client_goes_through_a_lecture(rig: Rig, node: str, namespace: str) -> None:
    """The teacher comes by long-polling and is upgraded, the student by websocket, to the other gateway."""
    lecture = await a_lecture(rig.gateways[0], students=2)
    ann, bob = lecture.students
    lines = await drive(
        node,
        {
            "urls": rig.gateways,
            "namespace": namespace,
            "session_id": lecture.session_id,
            "tokens": {
                "teacher": bearer(lecture.teacher, "teacher"),
                "student": bearer(ann, "student"),
                "bad": token(ann, "student", seconds=-60),
            },
        },
    )

    (refused,) = (line for line in lines if "refused" in line)
    assert refused["refused"]
    assert refused["data"] == {"code": "token_expired"}
    assert [line["transport"] for line in lines if "transport" in line] == ["websocket", "websocket"]

    early, joined = the(lines, who="student", ack="joinAttendanceSession")
    assert not early["ok"]
    assert (early["error"]["code"], early["error"]["retryable"]) == ("session_not_active", False)
    assert the(lines, who="student", event="attendanceError") == [
        {**early["error"], "event": "joinAttendanceSession", "session_id": lecture.session_id}
    ]

    (started,) = the(lines, who="teacher", ack="startAttendanceSession")
    assert the(lines, who="teacher", event="attendanceSessionStarted") == [started]
    assert (started["ok"], started["totalStudents"], started["seq"]) == (True, 2, 1)
    assert started["session"]["course_id"] == lecture.course_id

    assert the(lines, who="student", event="attendanceSessionJoined") == [joined]
    assert (joined["ok"], joined["status"], joined["seq"]) == (True, "present", 2)
    (seen,) = the(lines, who="teacher", event="studentJoinedAttendance")
    assert (seen["student_id"], seen["student_name"], seen["joined_at"]) == (ann, "Student 0", joined["joined_at"])
    assert the(lines, who="student", event="attendanceProgress")[-1]["statistics"]["presentCount"] == 1

    (data,) = the(lines, who="teacher", ack="getAttendanceSessionData")
    assert the(lines, who="teacher", event="attendanceSessionData") == [data]
    assert {record["student_id"]: record["status"] for record in data["attendanceRecords"]} == {ann: "present", bob: "absent"}

    (confirmed,) = the(lines, who="teacher", ack="endAttendanceSession")
    assert the(lines, who="teacher", event="attendanceSessionEndedConfirm") == [confirmed]
    (ended,) = the(lines, who="teacher", event="attendanceSessionEnded")
    assert ended["finalData"] == confirmed["finalData"]
    (heard,) = the(lines, who="student", event="attendanceSessionEnded")
    assert (heard["cause"], heard["ended_by_id"]) == ("ended", lecture.teacher)
    assert [record["student_id"] for record in heard["finalData"]["attendanceRecords"]] == [ann]

    errors = [payload["event"] for payload in the(lines, event="attendanceError")]
    assert errors == ["joinAttendanceSession"]


def test_the_lock_names_no_registry_and_every_hash() -> None:
    """So that it installs from whichever registry a machine is set to, and nothing but what was locked."""
    text = LOCK.read_text()
    packages = json.loads(text)["packages"]

    assert not re.search(r"https?:|//|resolved", text)
    assert json.loads((JS / "package.json").read_text())["dependencies"] == packages[""]["dependencies"]
    for name, package in packages.items():
        assert not name or package["integrity"].startswith("sha512-"), name
    for version in packages[""]["dependencies"].values():
        assert re.fullmatch(r"[0-9.]+", version), "exact versions only"
