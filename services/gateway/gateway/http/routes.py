"""What a route is made of: an operation, which also describes it, and the handler that does it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Generic, TypeVar, get_args

import msgspec
from aiohttp import web

from gateway.bodies import receive_body
from gateway.door import Door
from gateway.openapi import JSON, Answer, Operation, Takes
from gateway.payloads import MAX_BODY_BYTES, read_id, read_line
from gateway.requests import Requests
from gateway.views import View
from shared.clock import Clock, rfc3339
from shared.errors import Refused
from shared.messages import Actor, Role

P = TypeVar("P")
S = TypeVar("S", bound="Routes")

_OPERATION: Final = "operation"


@dataclass(frozen=True, slots=True)
class Asked(Generic[P]):
    """One request, checked: who asks, the ids in its path, what it says, and those headers that its operation names."""

    actor: Actor
    ids: Mapping[str, str]
    said: P
    headers: Mapping[str, str]

    @property
    def course_id(self) -> str:
        """The course in the path."""
        return self.ids["course_id"]

    @property
    def session_id(self) -> str:
        """The session in the path."""
        return self.ids["session_id"]

    @property
    def student_id(self) -> str:
        """The student in the path."""
        return self.ids["student_id"]


Handler = Callable[[S, Asked[P]], Awaitable[web.Response]]
Serving = Callable[[web.Request], Awaitable[web.Response]]


def operation(
    method: str,
    path: str,
    takes: Takes[P],
    answers: Mapping[int, Answer] | Answer,
    *,
    refusals: tuple[str, ...] = (),
    headers: tuple[str, ...] = (),
    roles: tuple[Role, ...] = get_args(Role),
) -> Callable[[Handler[S, P]], Handler[S, P]]:
    """Make a method the handler of a route; its name and the first line of its docstring describe it."""

    def decorated(handler: Handler[S, P]) -> Handler[S, P]:
        described = Operation(
            method=method,
            path=path,
            name=handler.__name__,
            summary=(handler.__doc__ or "").partition("\n")[0],
            takes=takes,
            answers={200: answers} if isinstance(answers, Answer) else answers,
            refusals=refusals,
            headers=headers,
            roles=roles,
        )
        setattr(handler, _OPERATION, described)
        return handler

    return decorated


class Routes:
    """Some routes that belong together. Each request is checked against its operation before the handler sees it."""

    tag: ClassVar[str]

    def __init__(self, door: Door, requests: Requests, clock: Clock) -> None:
        self._door = door
        self._requests = requests
        self._clock = clock

    @classmethod
    def operations(cls) -> Iterator[Operation]:
        """List what is served, in the order of the source."""
        for handler in vars(cls).values():
            if described := getattr(handler, _OPERATION, None):
                yield replace(described, tag=cls.tag)

    def routes(self) -> Iterator[web.RouteDef]:
        """List the routes, for the application."""
        for described in self.operations():
            yield route(described, self._serving(described, getattr(self, described.name)))

    def _serving(self, described: Operation, handler: Callable[[Asked[Any]], Awaitable[web.Response]]) -> Serving:
        async def serve(request: web.Request) -> web.Response:
            actor = await self._actor(request)
            if actor.role not in described.roles:
                raise Refused("forbidden")
            ids = {name: read_id(request.match_info[name], name) for name in described.ids}
            headers = {name: read_line(request.headers[name], name) for name in described.headers if name in request.headers}
            said = await _said(request, described.takes)
            return await handler(Asked(actor, ids, said, headers))

        return serve

    async def _actor(self, request: web.Request) -> Actor:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refused("unauthenticated")
        user = await self._door.admit(token.strip(), self._door.origin(request))
        self._door.count(user)
        return user.actor

    def _acknowledged(self, view: View) -> web.Response:
        """Answer as the socket acknowledges, without its `ok`."""
        return as_json({**view, "server_time": rfc3339(self._clock())})


async def _said(request: web.Request, takes: Takes[P]) -> P:
    if not takes.bodies:
        return takes.read(request.query, b"", "")
    body = await receive_body(request, takes.max_bytes)
    if takes.max_bytes > MAX_BODY_BYTES:
        return await asyncio.to_thread(takes.read, request.query, body, request.content_type)
    return takes.read(request.query, body, request.content_type)


def route(described: Operation, serve: Serving) -> web.RouteDef:
    """Make the route of an operation; what can be read, HEAD looks at."""
    if described.method == "GET":
        return web.get(described.path, serve)
    return web.route(described.method, described.path, serve)


def as_json(body: Any, status: int = 200) -> web.Response:
    """Answer JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type=JSON)


def as_file(body: bytes, content_type: str, name: str) -> web.Response:
    """Answer a file to be kept under a name, which must be safe to stand in a header."""
    charset = "utf-8" if content_type.startswith("text/") else None
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(body=body, content_type=content_type, charset=charset, headers=headers)
