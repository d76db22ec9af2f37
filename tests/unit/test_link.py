"""A link, with a connection that is made and lost at will."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from shared import link
from shared.link import Link, Lose


class Connection:
    """What a link keeps up."""

    def __init__(self) -> None:
        self.refusals = 0
        self.made = 0
        self.cleared = 0
        self.hanging: asyncio.Event | None = None
        """Where it is set an attempt hangs for ever, and says here that it does."""
        self.lose: Lose = lambda reason: None

    async def connect(self, lose: Lose) -> None:
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError("nobody is there")
        if self.hanging:
            self.hanging.set()
            await asyncio.Event().wait()
        self.made += 1
        self.lose = lose

    async def probe(self) -> None:
        """All is well."""

    async def disconnect(self) -> None:
        self.cleared += 1


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
            while connection.made < 2 or not kept.up:  # noqa: ASYNC110 - the link tells nobody
                await asyncio.sleep(0.001)
    assert [entry["event"] for entry in logs] == ["link.lost", "link.restored"]
    assert connection.cleared == 1


async def test_one_that_is_closed_while_it_tries_tries_no_more(kept: Link, connection: Connection) -> None:
    connection.refusals = 1_000_000
    kept.begin()
    async with asyncio.timeout(10):
        while connection.cleared < 3:  # noqa: ASYNC110 - the link tells nobody
            await asyncio.sleep(0.001)
    await kept.close()
    left = connection.refusals
    # Many times as long as it paused between two attempts.
    await asyncio.sleep(0.1)
    assert (kept.up, connection.refusals) == (False, left)


async def test_one_that_is_closed_in_the_middle_of_an_attempt_clears_it_away(kept: Link, connection: Connection) -> None:
    connection.hanging = asyncio.Event()
    kept.begin()
    async with asyncio.timeout(10):
        await connection.hanging.wait()
        await kept.close()
    assert (kept.up, connection.made) == (False, 0)
    assert connection.cleared >= 1
