"""Users over HTTP: what an admin may do about somebody who is connected."""

from aiohttp import web

from gateway.answers import SocketsCut
from gateway.cuts import Cuts
from gateway.door import Door
from gateway.http.routes import Asked, Routes, as_json, operation
from gateway.openapi import Answer, from_query
from gateway.queries import Nothing
from gateway.requests import Requests
from shared.clock import Clock
from shared.errors import Refused


class Users(Routes):
    """The routes below /users."""

    tag = "users"

    def __init__(self, door: Door, requests: Requests, clock: Clock, cuts: Cuts) -> None:
        super().__init__(door, requests, clock)
        self._cuts = cuts

    @operation("DELETE", "/users/{user_id}/sockets", from_query(Nothing), Answer("They are gone", SocketsCut))
    async def cut_sockets(self, asked: Asked[Nothing]) -> web.Response:
        """Cut off all sockets of a user, on every gateway; their token stays good until it expires. For admins."""
        if asked.actor.role != "admin":
            raise Refused("forbidden")
        user_id = asked.ids["user_id"]
        return as_json(SocketsCut(user_id=user_id, cut=await self._cuts.cut(user_id)))
