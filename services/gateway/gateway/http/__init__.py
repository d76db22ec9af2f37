"""The HTTP side, under /api/v1: the same commands as over the socket, and courses, rosters, sessions and reports."""

from importlib.metadata import version
from itertools import chain
from typing import Any, Final

from aiohttp import web

from gateway.cuts import Cuts
from gateway.door import Door
from gateway.http.courses import Courses
from gateway.http.origins import admits, cors
from gateway.http.pages import docs
from gateway.http.refusals import refusals
from gateway.http.rolls import Rolls
from gateway.http.routes import Routes, as_json, route
from gateway.http.sessions import Sessions
from gateway.http.users import Users
from gateway.openapi import JSON, Answer, Operation, document, from_query
from gateway.queries import Nothing
from gateway.requests import Requests
from shared.clock import Clock

__all__ = ["PREFIX", "admits", "api", "cors", "description", "docs", "refusals"]

PREFIX: Final = "/api/v1"
ROUTES: Final[tuple[type[Routes], ...]] = (Courses, Sessions, Rolls, Users)
_DESCRIPTION: Final = Operation(
    method="GET",
    path="/openapi.json",
    name="read_description",
    summary="Read this document.",
    takes=from_query(Nothing),
    answers={200: Answer("OpenAPI 3.1", dict[str, Any])},
    tag="description",
    public=True,
)


def api(door: Door, requests: Requests, cuts: Cuts, clock: Clock) -> web.Application:
    """Make the application to mount under `PREFIX`, in one with `refusals` as middleware."""
    described = as_json(description()).body

    async def read_description(_: web.Request) -> web.Response:
        return web.Response(body=described, content_type=JSON)

    app = web.Application()
    served = [*(kind(door, requests, clock) for kind in (Courses, Sessions, Rolls)), Users(door, requests, clock, cuts)]
    app.add_routes(chain.from_iterable(routes.routes() for routes in served))
    app.add_routes([route(_DESCRIPTION, read_description)])
    return app


def description() -> dict[str, Any]:
    """Describe the API: the OpenAPI document."""
    operations = [*chain.from_iterable(kind.operations() for kind in ROUTES), _DESCRIPTION]
    return document(operations, version=version("rollcall"), prefix=PREFIX)
