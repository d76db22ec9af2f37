"""The body of a request, which must come as fast as the slowest honest line brings it, and may be only so large."""

import asyncio
from typing import Final

from aiohttp import web

BODY_SECONDS: Final = 10.0
"""How long a body may take; longer by what it has brought."""
BYTES_PER_SECOND: Final = 4096
"""What counts as a second more: 257 KiB may take 74 s, and who sends a byte now and then gains nothing."""


async def receive_body(request: web.Request, max_bytes: int) -> bytes:
    """Wait for a whole body.

    Raise HTTPRequestEntityTooLarge, web.RequestPayloadError for one whose encoding is wrong, and OSError when its client has
    gone, or was cut off because it took too long.
    """
    body = bytearray()
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(BODY_SECONDS) as limit:
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise web.HTTPRequestEntityTooLarge(max_bytes)
                limit.reschedule(began + BODY_SECONDS + len(body) / BYTES_PER_SECOND)
    except TimeoutError:
        # Where an answer is sent, aiohttp waits 10 s more for the rest of the body.
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("a body has no end") from None
    return bytes(body)
