"""The HTTP side, under /api/v1: the same commands as over the socket, and courses, rosters and sessions."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast, get_args

import msgspec
import structlog
from aiohttp import web

from gateway import views
from gateway.auth import Tokens
from gateway.payloads import (
    MAX_BODY_BYTES,
    CoursePayload,
    invalid,
    read_body,
    read_cursor,
    read_id,
    read_line,
    read_number,
    read_roster,
    read_session_body,
)
from gateway.requests import Requests
from shared.clock import Clock, rfc3339
from shared.errors import CODES, Refused
from shared.messages import Actor, RollRead, SessionStatus

log = structlog.get_logger()

PREFIX: Final = "/api/v1"
_PAGE: Final = 50
_MAX_PAGE: Final = 200


def api(tokens: Tokens, requests: Requests, clock: Clock) -> web.Application:
    """Make the application to mount under `PREFIX`, in one that has `refusals` as middleware."""
    routes = _Api(tokens, requests, clock)
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.add_routes(
        [
            web.put("/courses/{course_id}", routes.put_course),
            web.get("/courses/{course_id}", routes.read_course),
            web.get("/courses", routes.list_courses),
            web.put("/courses/{course_id}/roster", routes.put_roster),
            web.get("/courses/{course_id}/roster", routes.read_roster),
            web.post("/sessions", routes.create_session),
            web.get("/sessions", routes.list_sessions),
            web.get("/sessions/{session_id}", routes.read_session),
            web.post("/sessions/{session_id}/start", routes.start),
            web.post("/sessions/{session_id}/end", routes.end),
            web.get("/sessions/{session_id}/attendance", routes.read_roll),
        ]
    )
    return app


@web.middleware
async def refusals(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Turn refusals, and whatever the library itself refuses, into the contract's error bodies."""
    try:
        return await handler(request)
    except Refused as refused:
        return _error(CODES[refused.code].status, refused)
    except web.HTTPRequestEntityTooLarge:
        return _error(413, invalid("", f"the body must have at most {MAX_BODY_BYTES} bytes"))
    except web.HTTPMethodNotAllowed as error:
        response = _error(405, Refused("not_found", "No such method here"))
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except web.HTTPNotFound:
        return _error(404, Refused("not_found"))
    except web.HTTPException:
        raise
    except ConnectionResetError:
        raise  # the caller has hung up; nobody reads an answer
    except Exception:
        log.exception("http.request_failed", method=request.method, route=str(request.match_info.route.resource))
        return _error(500, Refused("internal"))


class _Api:
    def __init__(self, tokens: Tokens, requests: Requests, clock: Clock) -> None:
        self._tokens = tokens
        self._requests = requests
        self._clock = clock

    async def put_course(self, request: web.Request) -> web.Response:
        actor = self._actor(request)
        course_id = read_id(request.match_info["course_id"], "course_id")
        payload = read_body(await request.read(), CoursePayload)
        stored = await self._requests.put_course(actor, course_id, payload)
        return _json(stored.course, 201 if stored.created else 200)

    async def read_course(self, request: web.Request) -> web.Response:
        actor = self._actor(request)
        return _json(await self._requests.read_course(actor, read_id(request.match_info["course_id"], "course_id")))

    async def list_courses(self, request: web.Request) -> web.Response:
        return _json(await self._requests.list_courses(self._actor(request), *_page(request)))

    async def put_roster(self, request: web.Request) -> web.Response:
        actor = self._actor(request)
        course_id = read_id(request.match_info["course_id"], "course_id")
        students = read_roster(await request.read(), request.content_type)
        return _json(await self._requests.put_roster(actor, course_id, students))

    async def read_roster(self, request: web.Request) -> web.Response:
        actor = self._actor(request)
        course_id = read_id(request.match_info["course_id"], "course_id")
        return _json(await self._requests.read_roster(actor, course_id, *_page(request)))

    async def create_session(self, request: web.Request) -> web.Response:
        actor = self._actor(request)
        payload = read_session_body(await request.read())
        key = request.headers.get("Idempotency-Key")
        if key is not None:
            key = read_line(key, "Idempotency-Key")
        fingerprint = hashlib.sha256(msgspec.json.encode(payload)).hexdigest()
        stored = await self._requests.create_session(actor, payload, idempotency_key=key, fingerprint=fingerprint)
        return _json(stored.session, 201)

    async def list_sessions(self, request: web.Request) -> web.Response:
        actor = self._actor(request)
        course_id = request.query.get("course_id")
        status = request.query.get("status")
        if status is not None and status not in get_args(SessionStatus):
            raise invalid("status", f"must be one of {', '.join(get_args(SessionStatus))}")
        page = await self._requests.list_sessions(
            actor,
            None if course_id is None else read_id(course_id, "course_id"),
            cast(SessionStatus | None, status),
            *_page(request),
        )
        return _json(page)

    async def read_session(self, request: web.Request) -> web.Response:
        return _json(await self._requests.read_session(self._actor(request), _session_id(request)))

    async def start(self, request: web.Request) -> web.Response:
        return self._answer(views.started(await self._requests.start(self._actor(request), _session_id(request))))

    async def end(self, request: web.Request) -> web.Response:
        return self._answer(views.ended_confirm(await self._requests.end(self._actor(request), _session_id(request))))

    async def read_roll(self, request: web.Request) -> web.Response:
        read: RollRead = await self._requests.read_roll(self._actor(request), _session_id(request))
        return self._answer(views.roll(read))

    def _actor(self, request: web.Request) -> Actor:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refused("unauthenticated")
        return self._tokens.check(token.strip()).actor

    def _answer(self, view: views.View) -> web.Response:
        return _json({**view, "server_time": rfc3339(self._clock())})


def _session_id(request: web.Request) -> str:
    return read_id(request.match_info["session_id"], "session_id")


def _page(request: web.Request) -> tuple[int, str | None]:
    limit = read_number(request.query.get("limit"), "limit", default=_PAGE, most=_MAX_PAGE)
    return limit, read_cursor(request.query.get("cursor"))


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def _error(status: int, refused: Refused) -> web.Response:
    error: dict[str, Any] = {"code": refused.code, "message": refused.message}
    if refused.details:
        error["details"] = refused.details
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return web.Response(
        body=msgspec.json.encode({"error": error}), status=status, content_type="application/json", headers=headers
    )
