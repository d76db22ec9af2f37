"""What polling is made of: the body of a POST, read within limits, and the answer to a GET."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from aiohttp import web

from gateway.bodies import receive_body
from gateway.engine.websockets import Malformed


async def read_text(request: web.Request, *, max_bytes: int) -> str:
    """Read a whole body as text; raise Malformed for what is none, too large, or not there in time."""
    try:
        return (await receive_body(request, max_bytes)).decode()
    except web.HTTPRequestEntityTooLarge:
        raise Malformed("a body is too large") from None
    except UnicodeDecodeError:
        raise Malformed("a body is not UTF-8") from None
    except (web.RequestPayloadError, OSError) as error:
        raise Malformed("a body has no end") from error


class Answer(web.Response):
    """An answer that is written in a block of `writing`, which is told the connection it goes to."""

    def __init__(
        self,
        request: web.Request,
        writing: Callable[[asyncio.Transport | None], AbstractContextManager[None]],
        **said: Any,
    ) -> None:
        super().__init__(**said)
        self._asked = request
        self._writing = writing

    async def write_eof(self, data: bytes = b"") -> None:
        """Write it; raise ConnectionError when its client has gone."""
        with self._writing(self._asked.transport):
            await super().write_eof(data)
