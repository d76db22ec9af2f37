"""Who may be on a socket, for how long, and how much they may ask: tokens, handshakes, dismissals and rates."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from socketio.exceptions import ConnectionRefusedError

from gateway.usage import USER_LIMIT
from shared.errors import Refused
from tests.contract.room_events import SID
from tests.contract.room_talk import World, until
from tests.contract.socket_talk import ABOUT, SECRET, Gateway, online


@pytest.fixture
async def gateway(world: World) -> AsyncIterator[Gateway]:
    yield Gateway(world)


# Tokens


async def test_a_socket_whose_token_expires_is_told_and_cut_off(gateway: Gateway, world: World) -> None:
    ear, other = await gateway.a_caller(seconds=60), await gateway.a_caller("s3", seconds=61)
    await gateway.ask(ear, "joinAttendanceSession", **ABOUT)
    gateway.time += timedelta(seconds=59)
    await gateway.attendance.cut_off_expired()
    assert (ear.farewells, ear.of("attendanceError")) == (0, [])

    gateway.time += timedelta(seconds=1)
    await gateway.attendance.cut_off_expired()
    await gateway.attendance.cut_off_expired()

    [error] = ear.of("attendanceError")
    assert error == {"code": "token_expired", "message": error["message"], "retryable": False, "event": "connect"}
    assert (ear.farewells, other.farewells) == (1, 0)
    assert not world.manager.is_connected(ear.member.sid, "/")
    assert await online(world) == set()
    assert await gateway.ask(ear, "joinAttendanceSession", **ABOUT) is None


async def test_who_came_within_the_leeway_stays_for_all_of_it(gateway: Gateway) -> None:
    ear = await gateway.a_caller(seconds=-10)
    gateway.time += timedelta(seconds=19)
    await gateway.attendance.cut_off_expired()
    assert ear.farewells == 0

    gateway.time += timedelta(seconds=1)
    await gateway.attendance.cut_off_expired()

    assert ear.farewells == 1


async def test_a_fresh_token_prolongs_the_connection(gateway: Gateway) -> None:
    ear = await gateway.a_caller(seconds=60)

    answer = await gateway.ask(ear, "refreshToken", token=gateway.token(seconds=120))
    assert answer["expires_at"] == (gateway.time + timedelta(seconds=120)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert set(answer) == {"ok", "expires_at", "server_time"}
    older = await gateway.ask(ear, "refreshToken", token=gateway.token(seconds=30))
    assert older["expires_at"] == answer["expires_at"]
    gateway.time += timedelta(seconds=119)
    await gateway.attendance.cut_off_expired()
    assert (ear.farewells, ear.heard) == (0, [])
    gateway.time += timedelta(seconds=1)
    await gateway.attendance.cut_off_expired()

    assert ear.farewells == 1


async def test_another_persons_token_and_a_bad_one_change_nothing(gateway: Gateway) -> None:
    ear = await gateway.a_caller(seconds=60)
    tokens = {
        gateway.token("s3"): "forbidden",
        gateway.token("s2", "teacher"): "forbidden",
        gateway.token(seconds=-40): "token_expired",
        "rubbish": "unauthenticated",
    }

    for token, code in tokens.items():
        assert (await gateway.ask(ear, "refreshToken", token=token))["error"]["code"] == code
    assert ear.farewells == 0
    gateway.time += timedelta(seconds=60)
    await gateway.attendance.cut_off_expired()

    assert ear.farewells == 1


# Who may


class LateKeys:
    """A key that is fetched while a handshake waits."""

    def __init__(self) -> None:
        self.asked, self.found = asyncio.Event(), asyncio.Event()

    async def find(self, algorithm: str, kid: str | None) -> str:
        self.asked.set()
        await self.found.wait()
        return SECRET


async def test_who_goes_while_a_key_is_fetched_for_them_leaves_nothing_behind(world: World) -> None:
    """The library does not tell of a socket that goes before it is in, and would let it in all the same."""
    keys = LateKeys()
    gateway = Gateway(world, keys)
    ear = await world.a_socket("student", "s2")
    handshake = gateway.attendance.trigger_event("connect", ear.member.sid, {}, {"token": gateway.token()})
    connecting = asyncio.ensure_future(handshake)
    await keys.asked.wait()
    ear.closed = True
    keys.found.set()

    with pytest.raises(ConnectionRefusedError):
        await connecting
    assert await gateway.ask(ear, "joinAttendanceSession", **ABOUT) is None


@pytest.mark.parametrize("fault", [RuntimeError("a defect"), ValueError(), Refused("unavailable")])
async def test_whatever_happens_in_a_handshake_is_a_refusal(world: World, fault: Exception) -> None:
    class Faulty:
        async def find(self, algorithm: str, kid: str | None) -> str:
            raise fault

    gateway = Gateway(world, Faulty())
    with pytest.raises(ConnectionRefusedError) as refused:
        await gateway.a_caller()
    code = fault.code if isinstance(fault, Refused) else "internal"
    assert refused.value.error_args["data"] == {"code": code}


async def test_who_is_dismissed_is_told_and_answered_no_more(gateway: Gateway, world: World) -> None:
    ears = [await gateway.a_caller(), await gateway.a_caller()]
    other = await gateway.a_caller("s3")
    for ear in (*ears, other):
        assert (await gateway.ask(ear, "joinAttendanceSession", **ABOUT))["ok"]
    room = world.rooms.room_of(SID)
    await until(lambda: room is not None and len(room.members) == 3)

    connections = gateway.attendance.dismiss("s2")

    assert {world.server.eio.sockets[connection] for connection in connections} == set(ears)
    for ear in ears:
        [error] = ear.of("attendanceError")
        assert (error["code"], error["event"], error["retryable"]) == ("unauthenticated", "connect", False)
        assert await gateway.ask(ear, "joinAttendanceSession", **ABOUT) is None
    assert await online(world) == {"s3"}
    assert (await gateway.ask(other, "joinAttendanceSession", **ABOUT))["ok"]
    assert gateway.attendance.dismiss("s2") == []


async def test_one_command_too_many_is_refused_with_the_time_to_wait(gateway: Gateway) -> None:
    ear = await gateway.a_caller()
    now = asyncio.get_running_loop().time()
    # The handshake was the first.
    for _ in range(USER_LIMIT.burst - 1):
        gateway.usage._users.take("s2", now)

    async with asyncio.timeout(10):
        while (answer := await gateway.ask(ear, "syncAttendanceSession", **ABOUT))["ok"]:
            pass

    error = answer["error"]
    assert (error["code"], error["retryable"]) == ("rate_limited", True)
    assert 0 < error["retry_after_ms"] <= 1000 / USER_LIMIT.per_second
    assert ear.of("attendanceError")[-1]["retry_after_ms"] == error["retry_after_ms"]
    other = await gateway.a_caller("s3")
    assert (await gateway.ask(other, "syncAttendanceSession", **ABOUT))["ok"]


async def test_handshakes_are_counted_as_commands_are(gateway: Gateway, world: World) -> None:
    ear = await world.a_socket("student", "s2")
    shown = {"token": gateway.token()}

    with pytest.raises(ConnectionRefusedError) as refused:
        async with asyncio.timeout(30):
            for _ in range(10 * USER_LIMIT.burst):
                await gateway.attendance.trigger_event("connect", ear.member.sid, {}, shown)

    data = refused.value.error_args["data"]
    assert data["code"] == "rate_limited"
    assert 0 < data["retry_after_ms"] <= 1000 / USER_LIMIT.per_second
    await gateway.a_caller("s3")
