"""Refusals as HTTP says them: whatever a handler or the library refuses becomes the contract's error body."""

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.http.routes import as_json
from gateway.payloads import invalid
from gateway.views import refusal
from shared.errors import CODES, Refused

log = structlog.get_logger()


@web.middleware
async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn refusals, and whatever the library itself refuses, into the contract's error bodies."""
    try:
        return await handler(request)
    except Refused as refused:
        return _error(CODES[refused.code].status, refused)
    except web.HTTPRequestEntityTooLarge as error:
        return _error(413, invalid("", error.text or error.reason))
    except web.HTTPMethodNotAllowed as error:
        response = _error(405, Refused("not_found", "No such method here"))
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except web.HTTPNotFound:
        return _error(404, Refused("not_found"))
    except web.HTTPException:
        raise
    except ConnectionResetError:
        # The caller has hung up, and nobody reads this. Raised on, it would be logged with a traceback.
        return _error(500, Refused("internal"))
    except Exception:
        log.exception("http.request_failed", method=request.method, route=str(request.match_info.route.resource))
        return _error(500, Refused("internal"))


def _error(status: int, refused: Refused) -> web.Response:
    response = as_json({"error": refusal(refused)}, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if refused.retry_after_ms is not None:
        # Whole seconds, and never too early.
        response.headers["Retry-After"] = str(-(-refused.retry_after_ms // 1000))
    return response
