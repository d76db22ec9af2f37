"""Clients that mean harm: what each of them costs is bounded, and nobody else notices."""

import asyncio
import json
import math
import time
from typing import Any

import pytest

from tests.system.footprint import rss_kib
from tests.system.gateways import one_more_gateway
from tests.system.rig import Process, Rig
from tests.system.talk import Lecture, a_lecture, an_admin, calling, http
from tests.wire import SEPARATOR, a_raw_websocket, a_slow_poll, a_websocket, polling, slow_answer

KIB = 1024
ROWS = 10_000
SLOW_BYTES_PER_SECOND = 1_500_000
BRISK = {"ping_interval_seconds": 1.0, "ping_timeout_seconds": 1.0}
UNREAD_KIB = 48 * KIB
"""Some copies of a roll of three megabytes, while it is made and while it waits."""


async def a_large_roll(url: str) -> Lecture:
    """Open a roll of ten thousand."""
    lecture = await a_lecture(url, students=ROWS)
    async with calling(url, an_admin()) as admin, asyncio.timeout(60):
        while not (await admin.ask("startAttendanceSession", lecture.about))["ok"]:
            pass
    return lecture


def reading(lecture: Lecture) -> str:
    """The event that asks for its roll."""
    return json.dumps(["getAttendanceSessionData", lecture.about])


async def test_who_does_not_read_is_cut_off_while_who_reads_slowly_gets_a_roll_of_10000(cluster: Rig, gateway: Process) -> None:
    """A roll comes twice, as an event and as an acknowledgement: either is larger than all that else may wait."""
    url = cluster.gateways[0]
    lecture = await a_large_roll(url)
    slow, deaf = [await a_raw_websocket(url, buffer_bytes=32 * KIB) for _ in range(2)]
    try:
        for client in (slow, deaf):
            client.send("40" + json.dumps({"token": an_admin()}))
            await client.until("40")
        before = rss_kib(gateway)

        async with asyncio.timeout(60):
            slow.send(f"421{reading(lecture)}")
            answer = json.loads((await slow.until("431", bytes_per_second=SLOW_BYTES_PER_SECOND))[3:])[0]
        assert len(answer["attendanceRecords"]) == ROWS

        highest = 0
        for number in range(60):
            deaf.send(f"42{number}{reading(lecture)}")
            highest = max(highest, rss_kib(gateway) - before)
            await asyncio.sleep(0.05)
        # What was written before the end is still to be read; then it is over.
        async with asyncio.timeout(60):
            while await deaf.next() is not None:
                pass
        print(f"a client that does not read: {highest} KiB at most, {rss_kib(gateway) - before} KiB afterwards")
        assert highest < UNREAD_KIB * 2
        assert rss_kib(gateway) - before < UNREAD_KIB
    finally:
        for client in (slow, deaf):
            client.drop()


async def test_who_polls_slowly_gets_a_roll_of_10000_and_is_still_connected(cluster: Rig, gateway: Process) -> None:
    """Both copies of a roll come with one poll. Reading them takes longer than this gateway's pings are waited for: who was not
    yet through, or just so, was taken for dead.
    """
    lecture = await a_large_roll(cluster.gateways[0])
    async with one_more_gateway(cluster, **BRISK) as url, polling(url) as client, asyncio.timeout(60):
        await client.join(an_admin())
        assert await client.post(f"421{reading(lecture)}") == 200
        began = time.monotonic()
        packets: list[str] = []
        while not (answers := [packet for packet in packets if packet.startswith("431[")]):
            async with a_slow_poll(client, buffer_bytes=32 * KIB) as reader:
                packets += (await slow_answer(reader, bytes_per_second=SLOW_BYTES_PER_SECOND)).split(SEPARATOR)
        assert time.monotonic() - began > sum(BRISK.values())
        assert len(json.loads(answers[0][3:])[0]["attendanceRecords"]) == ROWS
        assert await client.get() == (200, ["2"])
        assert await client.post("3", '422["nobodyKnows",{}]') == 200
        assert any(packet.startswith("432[") for packet in (await client.get())[1])


async def test_who_polls_and_does_not_read_is_cut_off(cluster: Rig, gateway: Process) -> None:
    url = cluster.gateways[0]
    lecture = await a_large_roll(url)
    before = rss_kib(gateway)
    async with polling(url) as client, asyncio.timeout(60):
        await client.join(an_admin())
        assert await client.post(f"421{reading(lecture)}") == 200
        async with a_slow_poll(client, buffer_bytes=32 * KIB) as reader:
            highest = 0
            while await client.post(f"421{reading(lecture)}") == 200:
                highest = max(highest, rss_kib(gateway) - before)
                await asyncio.sleep(0.05)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await slow_answer(reader, bytes_per_second=math.inf)
    print(f"a client that polls and does not read: {highest} KiB at most, {rss_kib(gateway) - before} KiB afterwards")
    assert highest < UNREAD_KIB * 2
    assert rss_kib(gateway) - before < UNREAD_KIB


async def test_a_million_keys_are_refused_before_they_are_many(cluster: Rig, gateway: Process) -> None:
    """Where they are more than a frame or a body may be; what fits is read, and is no command."""
    url = cluster.gateways[0]
    many = json.dumps({f"{number:x}": 0 for number in range(1_000_000)}, separators=(",", ":"))
    fitting = json.dumps({f"{number:x}": 0 for number in range(25_000)}, separators=(",", ":"))
    async with a_websocket(url) as client, a_websocket(url) as other, polling(url) as poller:
        for each in (client, other):
            await each.join(an_admin())
        await client.send(f'421["bulkUpdateAttendance",{fitting}]')
        assert '"code":"invalid"' in await client.until("431")
        await client.send(f'422["bulkUpdateAttendance",{many}]')
        assert await client.ended() == []
        assert await poller.post(f'42["bulkUpdateAttendance",{many}]') == 400
        assert (await other.ask("nobodyKnows", {}))["error"]["code"] == "invalid"
    for path in ("/sessions", "/courses/million"):
        status, body = await http(url, "POST" if path == "/sessions" else "PUT", path, an_admin(), data=many)
        assert status in (400, 413), body


TOWERS = {
    "a list": "[" * 100_000 + "]" * 100_000,
    "an object": '{"a":' * 40_000 + "0" + "}" * 40_000,
    "in a known key": '{"session_id":' + "[" * 200 + "]" * 200 + "}",
    "shallow enough": '{"a":' * 100 + "0" + "}" * 100,
}


@pytest.mark.parametrize("case", TOWERS)
async def test_deep_nesting_is_refused(cluster: Rig, gateway: Process, case: str) -> None:
    url = cluster.gateways[0]
    async with a_websocket(url) as client, a_websocket(url) as other:
        for each in (client, other):
            await each.join(an_admin())
        await client.send(f'421["joinAttendanceSession",{TOWERS[case]}]')
        if case in ("a list", "an object"):
            assert await client.ended() == []
        else:
            assert '"code":"invalid"' in await client.until("431")
        assert (await other.ask("nobodyKnows", {}))["error"]["code"] == "invalid"
    status, body = await http(url, "POST", "/sessions", an_admin(), data=TOWERS[case])
    assert (status, body["error"]["code"]) == (400, "invalid")


@pytest.mark.parametrize("letter", ["\\u0000", "\\ud800", "\\udfff", "\\ude00\\ud83d"])
async def test_letters_that_cannot_be_kept_are_invalid(cluster: Rig, gateway: Process, letter: str) -> None:
    """NUL, and halves of letters: in ids, remarks, reasons and names, over either way in."""
    url = cluster.gateways[0]
    lecture = await a_lecture(url, students=1)
    about = f'"session_id":"{lecture.session_id}","student_id":"{lecture.students[0]}"'
    commands = [
        f'["markStudentAttendance",{{{about},"status":"late","remarks":"a{letter}"}}]',
        f'["markStudentLate",{{{about},"reason":"a{letter}"}}]',
        f'["joinAttendanceSession",{{"session_id":"a{letter}"}}]',
        f'["joinAttendanceSession",{{{about},"command_id":"a{letter}"}}]',
        f'["a{letter}",{{{about}}}]',
        f'["refreshToken",{{"token":"a{letter}"}}]',
        f'["subscribeToCourse",{{"course_id":"{letter}"}}]',
    ]
    async with a_websocket(url) as client:
        await client.join(an_admin())
        for number, command in enumerate(commands, 1):
            await client.send(f"42{number}{command}")
            answer = json.loads((await client.until(f"43{number}["))[3:])[0]
            expected = ("invalid", "unauthenticated") if "refreshToken" in command else ("invalid",)
            assert answer["error"]["code"] in expected, command
    bodies: dict[tuple[str, str], str] = {
        ("PUT", f"/courses/{lecture.course_id}/roster"): f'[{{"student_id":"a","name":"b{letter}"}}]',
        ("PUT", f"/courses/{lecture.course_id}"): f'{{"title":"b{letter}","teacher_ids":[],"time_zone":"UTC"}}',
        ("POST", f"/courses/{lecture.course_id}/roster/x"): f'{{"name":"b{letter}"}}',
    }
    for (method, path), data in bodies.items():
        status, body = await http(url, method, path, an_admin(), data=data)
        assert (status, body["error"]["code"]) == (400, "invalid"), path


async def test_what_many_bad_clients_make_the_gateway_log_is_bounded(cluster: Rig, gateway: Process) -> None:
    """The fixture sees to the volume."""
    before = gateway.log.read_text().count("links.closed")

    async def be_bad(said: str) -> None:
        async with a_websocket(cluster.gateways[0]) as client:
            await client.send(said)
            await client.ended()

    for _ in range(10):
        await asyncio.gather(*map(be_bad, ["9" * 1000, "4", "42[", '451-["x"]', "40{", "2", "x" * 300 * KIB] * 4))
    # From one address: five, and one more each ten seconds.
    assert gateway.log.read_text().count("links.closed") - before <= 15


async def test_a_flood_of_commands_is_answered_until_it_is_cut_off(cluster: Rig, gateway: Process) -> None:
    url = cluster.gateways[0]
    flood = await a_raw_websocket(url)
    answers: list[Any] = []
    try:
        flood.send("40" + json.dumps({"token": an_admin()}))
        await flood.until("40")

        async def pour() -> None:
            for _ in range(5_000):
                flood.send('421["getOnlineStudents",{"session_id":"nobody"}]')
                await asyncio.sleep(0)

        # It reads meanwhile: what is answered last is soon torn off.
        pouring = asyncio.create_task(pour())
        async with asyncio.timeout(60):
            while (packet := await flood.next()) is not None:
                answers += json.loads(packet[3:]) if packet.startswith("431") else []
        await pouring
    finally:
        flood.drop()
    codes = [answer["error"]["code"] for answer in answers]
    assert codes.count("rate_limited") > 500
    assert set(codes) <= {"rate_limited", "session_not_found", "timeout", "unavailable"}
