"""Which pages of other origins may call the API and open sockets: those of ROLLCALL_CORS_ORIGINS; none unless told."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

_METHODS: Final = "GET, POST, PUT, PATCH, DELETE"
_HEADERS: Final = "Authorization, Content-Type, Idempotency-Key"
_EXPOSED: Final = "Content-Disposition, Retry-After"
_REMEMBERED_SECONDS: Final = 600


def cors(origins: Collection[str], prefix: str) -> Middleware:
    """Make a middleware that lets pages of these origins (`*`: of any) call what is below `prefix`, and read refusals too."""

    @web.middleware
    async def allow(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not origins or not request.path.startswith(f"{prefix}/"):
            return await handler(request)
        origin = request.headers.get(hdrs.ORIGIN)
        allowed = origin is not None and (origin in origins or "*" in origins)
        preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if allowed and preflight:
            response: web.StreamResponse = web.Response(status=204)
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = _METHODS
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = _HEADERS
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(_REMEMBERED_SECONDS)
        else:
            response = await handler(request)
        # What a cache keeps for one origin is not for another.
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        if origin is not None and allowed:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
        return response

    return allow


def admits(origins: Collection[str]) -> Callable[[str | None, Mapping[str, Any]], bool]:
    """Make what tells whether a page of this origin may open sockets: a listed one (`*`: any), or our own.

    Our own is known by the Host that the browser asked for, and by the scheme, which a proxy that ends TLS says in
    X-Forwarded-Proto: no page can make a browser send either of them. Who names no origin is no browser, and is not asked.
    """

    def admit(origin: str | None, environ: Mapping[str, Any]) -> bool:
        scheme = str(environ["wsgi.url_scheme"]).partition(",")[0].strip()
        return origin in origins or "*" in origins or origin == f"{scheme}://{environ.get('HTTP_HOST')}"

    return admit
