"""The page at /docs, which renders the OpenAPI document: files of our own, and nothing from anywhere else."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

from aiohttp import web

_FOLDER: Final = Path(__file__).parents[1] / "web"
_FILES: Final = {
    "/docs": ("docs.html", "text/html"),
    "/docs/docs.css": ("docs.css", "text/css"),
    "/docs/docs.js": ("docs.js", "text/javascript"),
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def docs() -> Iterator[web.RouteDef]:
    """List the routes of the page. Its files are read once, now."""
    for path, (name, content_type) in _FILES.items():
        yield web.get(path, _serving((_FOLDER / name).read_bytes(), content_type))


def _serving(body: bytes, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return serve
