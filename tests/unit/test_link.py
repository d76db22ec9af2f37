"""A link, with a connection that is made and lost at will."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from shared import link
from shared.link import Link, Lose


class Connection:
    """What a link keeps up."""

    def __init__(self) -> None:
        self.refusals = 0
        self.attempts: asyncio.Queue[str] = asyncio.Queue()
        self.made = 0
        self.cleared = 0
        self.hangs = False
        """Whether an attempt hangs for ever."""
        self.lose: Lose = lambda reason: None
        self.stubborn = False
        """Whether to ask and to clear away never ends, and takes more than one cancellation."""

    async def connect(self, lose: Lose) -> None:
        if self.refusals:
            self.refusals -= 1
            self.attempts.put_nowait("refused")
            raise ConnectionRefusedError("nobody is there")
        if self.hangs:
            self.attempts.put_nowait("hangs")
            await asyncio.Event().wait()
        self.attempts.put_nowait("made")
        self.made += 1
        self.lose = lose

    async def probe(self) -> None:
        """All is well, unless it hangs."""
        await self.hang()

    async def disconnect(self) -> None:
        self.cleared += 1
        await self.hang()

    async def hang(self) -> None:
        """As a library does that writes to a broker which reads no more: it catches a cancellation, and waits on."""
        if self.stubborn:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.Event().wait()


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(link, "_SHORTEST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(link, "_LONGEST_PAUSE_SECONDS", 0.005)
    return Connection()


@pytest.fixture
async def kept(connection: Connection) -> AsyncIterator[Link]:
    kept = Link("a test's", connect=connection.connect, probe=connection.probe, disconnect=connection.disconnect)
    yield kept
    await kept.close()


async def test_one_that_is_opened_raises_what_the_first_attempt_does(kept: Link, connection: Connection) -> None:
    connection.refusals = 1
    with pytest.raises(ConnectionRefusedError):
        await kept.open()
    assert (kept.up, connection.made, connection.cleared) == (False, 0, 1)


async def test_one_that_is_begun_holds_up_nobody_and_tries_until_it_works(kept: Link, connection: Connection) -> None:
    connection.refusals = 3
    with capture_logs() as logs:
        kept.begin()
        assert not kept.up
        async with asyncio.timeout(10):
            await kept.wait_up()
    assert (connection.made, connection.cleared) == (1, 3)
    assert [entry["event"] for entry in logs] == ["link.not_restored"] * 3 + ["link.restored"]


async def test_one_that_is_begun_says_nothing_where_all_is_well(kept: Link, connection: Connection) -> None:
    with capture_logs() as logs:
        kept.begin()
        async with asyncio.timeout(10):
            await kept.wait_up()
    assert (connection.made, logs) == (1, [])


async def test_a_loss_is_mended_however_the_link_was_begun(kept: Link, connection: Connection) -> None:
    kept.begin()
    async with asyncio.timeout(10):
        await kept.wait_up()
        with capture_logs() as logs:
            connection.lose("a cable was pulled")
            assert [await connection.attempts.get() for _ in range(2)] == ["made", "made"]
            await kept.wait_up()
    assert [entry["event"] for entry in logs] == ["link.lost", "link.restored"]
    assert connection.cleared == 1


@pytest.mark.parametrize("hangs", [True, False])
async def test_one_that_is_closed_while_it_tries_clears_away_and_tries_no_more(
    kept: Link, connection: Connection, hangs: bool
) -> None:
    """In the middle of an attempt, or between two."""
    before = asyncio.all_tasks()
    connection.refusals, connection.hangs = (0, True) if hangs else (1_000_000, False)
    kept.begin()
    async with asyncio.timeout(10):
        for _ in range(1 if hangs else 3):
            await connection.attempts.get()
        await kept.close()
    assert asyncio.all_tasks() <= before, "nobody is left who could try"
    assert (kept.up, connection.made) == (False, 0)
    assert connection.cleared >= 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what hangs is given up soon."""
    monkeypatch.setattr(link, "_PROBE_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(link, "_PROBE_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(link, "_DISCONNECT_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(link, "_CANCEL_AGAIN_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_what_hangs_though_it_is_cancelled_holds_up_no_new_connection(kept: Link, connection: Connection) -> None:
    """Neither the probe nor the clearing away."""
    await kept.open()
    with capture_logs() as logs:
        connection.stubborn = True
        async with asyncio.timeout(10):
            assert [await connection.attempts.get() for _ in range(2)] == ["made", "made"]
        connection.stubborn = False
    assert next(line["reason"] for line in logs if line["event"] == "link.lost").startswith("probe failed: TimeoutError")


@pytest.mark.usefixtures("impatient")
async def test_what_hangs_though_it_is_cancelled_holds_up_no_end_and_leaves_nothing(kept: Link, connection: Connection) -> None:
    before = asyncio.all_tasks()
    await kept.open()
    connection.stubborn = True

    async with asyncio.timeout(10):
        await kept.close()

    assert asyncio.all_tasks() <= before
