"""A command has the time of its arrival, whatever it asks besides the services."""

import asyncio
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from gateway.asked import Asked, Socket
from gateway.auth import User
from gateway.commands import Commands
from gateway.joins import Joins
from gateway.payloads import SessionCommandPayload
from gateway.requests import SECONDS, Requests
from shared.errors import Refused
from shared.messages import Actor

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
SPENT_SECONDS = 1.9


class SilentPresence:
    """On a Redis that is frozen: it has 2 s of its own, and 2 s more for a new connection."""

    async def online(self, session_id: str) -> Collection[str]:
        await asyncio.sleep(2 * SECONDS)
        raise AssertionError("it was waited for")


class AnsweringCalls:
    async def ask(self, command: object, expect: type) -> None:
        """Answer at once; nobody comes to look at it."""


async def test_who_asks_who_is_online_hears_in_time_where_redis_is_silent() -> None:
    """It was told 2.3 s after it asked, and would have been after 4 s where the roll was slow as well."""
    nothing: Any = None
    requests = Requests(cast(Any, AnsweringCalls()), lambda: NOW + timedelta(seconds=SPENT_SECONDS))
    presence: Any = SilentPresence()
    joins = Joins(requests, nothing, nothing, presence, lambda: NOW)
    commands = Commands(nothing, requests, nothing, nothing, nothing, presence, joins).table()
    socket = Socket("sid", "/", nothing, User(Actor("ada", "Ada", "teacher"), NOW), NOW)
    command = commands["getOnlineStudents"]
    assert command.do is not None
    asked = Asked(socket, SessionCommandPayload(session_id="5e55"), "5e55", NOW, command, nothing)
    began = time.monotonic()

    with pytest.raises(Refused) as refused:
        await command.do(asked)

    assert refused.value.code == "unavailable"
    assert time.monotonic() - began < SECONDS
