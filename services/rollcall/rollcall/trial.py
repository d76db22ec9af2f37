"""Trying it out from a terminal: a teacher who starts a session and watches, a student who joins."""

import asyncio
from typing import Any

import aiohttp
import socketio
from rich.console import Console

from shared.errors import StartupFailed

NAMESPACE = "/attendance"
_SECONDS = 10

console = Console(highlight=False)


async def start(url: str, token: str, session_id: str) -> int:
    """Start a session and watch its roll until it ends or Ctrl-C; return the exit status."""
    async with _Client(url, token) as client:
        ended = asyncio.Event()

        def joined(event: dict[str, Any]) -> None:
            console.print(f"{event['joined_at']}  [green]{event['status']:<8}[/] {event['student_name']}")

        def progress(event: dict[str, Any]) -> None:
            console.print(f"{_count(event['statistics'])}", style="dim")

        def session_ended(event: dict[str, Any]) -> None:
            console.print(f"ended by {event['ended_by']}: {_count(event['finalData']['statistics'])}")
            ended.set()

        async def connected_again() -> None:
            # A new connection hears nothing until it has asked.
            await client.emit("syncAttendanceSession", {"session_id": session_id}, namespace=NAMESPACE)

        client.on("connect", connected_again, namespace=NAMESPACE)
        client.on("studentJoinedAttendance", joined, namespace=NAMESPACE)
        client.on("attendanceProgress", progress, namespace=NAMESPACE)
        client.on("attendanceSessionEnded", session_ended, namespace=NAMESPACE)
        answer = await _ask(client, "startAttendanceSession", session_id)
        if not answer["ok"]:
            return 1
        console.print(f"[bold]{answer['session']['title']}[/] is on: {_count(answer['statistics'])}. Waiting for students…")
        await ended.wait()
    return 0


async def join(url: str, token: str, session_id: str) -> int:
    """Join a session as a student; return the exit status."""
    async with _Client(url, token) as client:
        answer = await _ask(client, "joinAttendanceSession", session_id)
        if answer["ok"]:
            console.print(f"{answer['message']}: [green]{answer['status']}[/] at {answer['joined_at']}")
    return 0 if answer["ok"] else 1


async def end(url: str, token: str, session_id: str) -> int:
    """End a session; return the exit status."""
    async with _Client(url, token) as client:
        answer = await _ask(client, "endAttendanceSession", session_id)
        if answer["ok"]:
            console.print(f"ended: {_count(answer['finalData']['statistics'])}")
    return 0 if answer["ok"] else 1


class _Client:
    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token
        self._refusal = ""

    async def __aenter__(self) -> socketio.AsyncClient:
        self._http = aiohttp.ClientSession()
        # Ctrl-C is asyncio's: the library would cancel everything at once, this block too.
        self._client = socketio.AsyncClient(reconnection=True, handle_sigint=False, http_session=self._http)
        self._client.on("connect_error", self._refused, namespace=NAMESPACE)
        try:
            await self._client.connect(
                self._url, auth={"token": self._token}, namespaces=[NAMESPACE], transports=["websocket"], wait_timeout=_SECONDS
            )
        except BaseException as error:
            await self._http.close()
            if self._refusal and isinstance(error, socketio.exceptions.ConnectionError):
                raise StartupFailed(self._refusal) from error
            raise
        return self._client

    async def __aexit__(self, *_: object) -> None:
        # Not `disconnect`, which would leave a client that is about to reconnect to do so.
        await self._client.shutdown()
        await self._http.close()

    def _refused(self, said: Any) -> None:
        """Keep why the server lets nobody in; of a server that is not there the library's own words will do."""
        match said:
            case {"message": message, "data": {"code": code}}:
                self._refusal = f"{message} ({code})"


async def _ask(client: socketio.AsyncClient, event: str, session_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = await client.call(event, {"session_id": session_id}, namespace=NAMESPACE, timeout=_SECONDS)
    if not answer["ok"]:
        console.print(f"[red]{answer['error']['code']}[/]: {answer['error']['message']}")
    return answer


def _count(statistics: dict[str, Any]) -> str:
    here = statistics["presentCount"] + statistics["lateCount"]
    return f"{here} of {statistics['totalStudents']} here"
