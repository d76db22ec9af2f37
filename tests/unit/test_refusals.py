"""What becomes of a request whose caller has gone in the middle of it."""

import logging

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.http.refusals import refusals


async def test_a_caller_who_hangs_up_during_the_handshake_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Chaos runs cut connections between a client's request to upgrade and the answer: each cost a traceback in the log."""
    failed: list[Exception] = []

    async def upgrade(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        response = web.WebSocketResponse()
        try:
            await response.prepare(request)
        except ConnectionResetError as error:
            failed.append(error)
            raise
        return response

    app = web.Application(middlewares=[refusals])
    app.router.add_get("/", upgrade)
    with caplog.at_level(logging.WARNING):
        async with TestClient(TestServer(app)) as client:
            with pytest.raises(aiohttp.ClientError):
                await client.ws_connect("/")
    assert failed
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
