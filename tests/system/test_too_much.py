"""Who asks too much of all gateways together is refused by all of them, by socket and by HTTP, and nobody else is; nor is who
asks too much at once on one connection.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from gateway.engine import links
from gateway.engine.server import BUSY_MS, MAX_UNDER_WAY
from gateway.usage import USER_LIMIT
from tests.system.gateways import gateways_alone
from tests.system.rig import token, unique
from tests.system.talk import Caller, calling, http
from tests.wire import a_websocket

NOTHING = "nobody knows this"
SECONDS = 30
EAGER = 5
BEYOND = 44


async def ask(caller: Caller) -> str:
    """Ask for something that costs nobody anything; return the code of the refusal."""
    error = (await caller.ask(NOTHING, {}))["error"]
    assert ("retry_after_ms" in error) == (error["code"] == "rate_limited")
    return str(error["code"])


async def fill(callers: Sequence[Caller]) -> None:
    """Ask as much as one may, on more sockets than one, for each has a limit of its own, and go on."""
    while True:
        codes = await asyncio.gather(*(ask(caller) for caller in callers for _ in range(10)))
        if "rate_limited" in codes:
            await asyncio.sleep(0.05)


async def until_refused(caller: Caller, pause_seconds: float) -> int:
    """Ask now and then until that is too often; return how often it was not."""
    asked = 0
    async with asyncio.timeout(SECONDS):
        while await ask(caller) != "rate_limited":
            asked += 1
            await asyncio.sleep(pause_seconds)
    return asked


async def test_who_asks_too_much_of_one_gateway_is_refused_by_the_other_too(redis_url: str) -> None:
    """On the other one they ask so little that it would never refuse them by itself."""
    user_id, other_id = unique("eager"), unique("other")
    shown = token(user_id, "student")
    async with (
        gateways_alone(redis_url) as (here, there),
        AsyncExitStack() as stack,
        calling(there, shown) as elsewhere,
        calling(there, token(other_id, "student")) as other,
    ):
        assert await ask(elsewhere) == "invalid"
        eager = [await stack.enter_async_context(calling(here, shown)) for _ in range(EAGER)]
        filling = asyncio.create_task(fill(eager))
        asked = await until_refused(elsewhere, pause_seconds=2 / USER_LIMIT.per_second)
        assert asked < USER_LIMIT.burst

        async with asyncio.timeout(SECONDS):
            # By HTTP it is the same person.
            while (answer := await http(there, "GET", "/courses?limit=0", shown))[0] != 429:
                assert answer[0] == 400
        error = answer[1]["error"]
        assert (error["code"], error["retryable"]) == ("rate_limited", True)
        assert error["retry_after_ms"] > 0
        assert await ask(other) == "invalid"
        filling.cancel()
        await asyncio.wait({filling})

        async with asyncio.timeout(SECONDS):
            while await ask(elsewhere) == "rate_limited":  # noqa: ASYNC110 (a bucket leaks in silence)
                await asyncio.sleep(0.1)


async def test_a_connection_with_256_commands_under_way_is_told_to_wait(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No service is there, so none is answered before its 2 s are over. At the usual 50 a second that many are never under way
    without 200 at once before them; here all may come at once, so that no slow machine lets the first end before the last.
    """
    monkeypatch.setattr(links, "COMMANDS", 2 * MAX_UNDER_WAY)
    mark = {"student_id": "s", "status": "late"}
    async with gateways_alone(redis_url, count=1) as [url], a_websocket(url) as client, a_websocket(url) as other:
        for each in (client, other):
            await each.join(token(unique("teacher"), "teacher"))
        heard: dict[int, str] = {}

        async def hear(count: int) -> None:
            for _ in range(count):
                number, _, answer = (await client.until("43")).removeprefix("43").partition("[")
                error = json.loads(f"[{answer}")[0]["error"]
                assert (error.get("retry_after_ms") == BUSY_MS) == (error["code"] == "rate_limited")
                heard[int(number)] = error["code"]

        numbers = range(1, MAX_UNDER_WAY + BEYOND + 1)
        await client.send(
            *(f"42{number}{json.dumps(['markStudentAttendance', {'session_id': unique('s'), **mark}])}" for number in numbers)
        )
        await hear(BEYOND)
        assert heard == dict.fromkeys(numbers[MAX_UNDER_WAY:], "rate_limited")
        assert (await other.ask(NOTHING, {}))["error"]["code"] == "invalid"

        await hear(MAX_UNDER_WAY)
        # Whichever of the two limits of 2 s is noticed first.
        assert {heard[number] for number in numbers[:MAX_UNDER_WAY]} <= {"unavailable", "timeout"}
        assert (await client.ask(NOTHING, {}))["error"]["code"] == "invalid"
