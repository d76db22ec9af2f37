"""Sessions and their life over HTTP."""

import hashlib

import msgspec
from aiohttp import web

from gateway import views
from gateway.answers import Cancelled, Ended, SessionList, Started, Submitted
from gateway.http.routes import Asked, Routes, as_json, operation
from gateway.openapi import Answer, from_json, from_query
from gateway.payloads import (
    CommandBody,
    ReopenBody,
    SessionPatch,
    SessionPayload,
    read_session_body,
    read_session_patch,
)
from gateway.queries import Nothing, SessionsQuery
from shared.messages import Session

_KEY = "Idempotency-Key"
_OVER = ("session_completed", "session_cancelled")


class Sessions(Routes):
    """The routes below /sessions, less the roll's."""

    tag = "sessions"

    @operation(
        "POST",
        "/sessions",
        from_json(SessionPayload, read_session_body),
        {201: Answer("Scheduled", Session)},
        refusals=("course_not_found", "conflict"),
        headers=(_KEY,),
    )
    async def create_session(self, asked: Asked[SessionPayload]) -> web.Response:
        """Schedule a session; the same Idempotency-Key makes one session, however often it is sent."""
        fingerprint = hashlib.sha256(msgspec.json.encode(asked.said)).hexdigest()
        key = asked.headers.get(_KEY)
        stored = await self._requests.create_session(asked.actor, asked.said, idempotency_key=key, fingerprint=fingerprint)
        return as_json(stored.session, 201)

    @operation("GET", "/sessions", from_query(SessionsQuery), Answer("One page", SessionList), refusals=("course_not_found",))
    async def list_sessions(self, asked: Asked[SessionsQuery]) -> web.Response:
        """List the sessions of one's courses, newest first."""
        said = asked.said
        page = await self._requests.list_sessions(asked.actor, said.course_id, said.status, said.limit, said.cursor)
        return as_json(page)

    @operation(
        "GET", "/sessions/{session_id}", from_query(Nothing), Answer("The session", Session), refusals=("session_not_found",)
    )
    async def read_session(self, asked: Asked[Nothing]) -> web.Response:
        """Read a session."""
        return as_json(await self._requests.read_session(asked.actor, asked.session_id))

    @operation(
        "PATCH",
        "/sessions/{session_id}",
        from_json(SessionPatch, read_session_patch),
        Answer("The session", Session),
        refusals=("session_not_found", "conflict", *_OVER),
    )
    async def change_session(self, asked: Asked[SessionPatch]) -> web.Response:
        """Change a session that is not over: what is not there stays as it is, what is null is taken away."""
        return as_json((await self._requests.change_session(asked.actor, asked.session_id, asked.said)).session)

    @operation(
        "POST",
        "/sessions/{session_id}/start",
        from_json(CommandBody),
        Answer("The open roll", Started),
        refusals=("session_not_found", "conflict", *_OVER),
    )
    async def start(self, asked: Asked[CommandBody]) -> web.Response:
        """Start a session; answered once its roll is open."""
        read = await self._requests.start(asked.actor, asked.session_id, asked.said.command_id)
        return self._acknowledged(views.started(read))

    @operation(
        "POST",
        "/sessions/{session_id}/end",
        from_json(CommandBody),
        Answer("The closed roll", Ended),
        refusals=("session_not_found", "session_not_active", "session_cancelled", "conflict"),
    )
    async def end(self, asked: Asked[CommandBody]) -> web.Response:
        """End a session; answered once its roll is closed."""
        read = await self._requests.end(asked.actor, asked.session_id, asked.said.command_id)
        return self._acknowledged(views.ended_confirm(read))

    @operation(
        "POST",
        "/sessions/{session_id}/cancel",
        from_json(CommandBody),
        Answer("The cancelled session", Cancelled),
        refusals=("session_not_found", "session_completed", "conflict"),
    )
    async def cancel(self, asked: Asked[CommandBody]) -> web.Response:
        """Cancel a session that is not over; its roll, where it has one, is closed."""
        stored = await self._requests.cancel(asked.actor, asked.session_id, asked.said.command_id)
        return self._acknowledged(views.cancelled(stored.session))

    @operation(
        "POST",
        "/sessions/{session_id}/submit",
        from_json(CommandBody),
        Answer("The submitted roll", Submitted),
        refusals=("session_not_found", "session_not_active", "session_cancelled", "conflict"),
    )
    async def submit(self, asked: Asked[CommandBody]) -> web.Response:
        """Submit a roll; one that is open is closed by it, which ends the session."""
        stored = await self._requests.submit(asked.actor, asked.session_id, asked.said.command_id)
        return self._acknowledged(views.submitted(stored, stored.seq))

    @operation(
        "POST",
        "/sessions/{session_id}/reopen",
        from_json(ReopenBody),
        Answer("The open roll", Started),
        refusals=("session_not_found", "session_not_active", "session_cancelled", "conflict"),
    )
    async def reopen(self, asked: Asked[ReopenBody]) -> web.Response:
        """Take an end or a submission back; answered once the roll is open again."""
        read = await self._requests.reopen(asked.actor, asked.session_id, asked.said.reason, asked.said.command_id)
        return self._acknowledged(views.started(read))
