"""`rollcall parking list | show | redrive`: what an operator may do with messages that no service could handle."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import typer
from msgspec import MsgspecError, json
from msgspec.structs import replace

from shared.amqp.parking import Parked, Parking, open_parking
from shared.clock import rfc3339, utc_now
from shared.errors import StartupFailed
from shared.messages import decode_commands, encode
from shared.settings import Settings

app = typer.Typer(no_args_is_help=True, help="See, and send back, the messages that no service could handle.")

REDRIVEN_FOR: Final = timedelta(days=1)
"""How long a command that was sent back may wait for its service: the time its caller gave it is long over.

It has left the parking by then, and past its time it would be dropped. Nobody waits, and done twice it is done once.
"""
_IDS_SHOWN: Final = 3
_REASON_SHOWN: Final = 100
_UNREADABLE: Final = (ValueError, RecursionError)
"""What reading JSON raises: msgspec's own, and others for bytes that are no text and for nesting too deep."""

ParkedId = Annotated[str, typer.Argument(metavar="ID", help="The first column of `rollcall parking list`.")]


@app.command(name="list")
def list_parked() -> None:
    """List what is parked, oldest first: id, when, queue, what it is, why. Changes nothing."""
    _run(_list)


@app.command()
def show(parked_id: ParkedId) -> None:
    """Show one parked message whole. Changes nothing."""
    _run(lambda parking: _show(parking, parked_id))


@app.command()
def redrive(
    parked_id: Annotated[str, typer.Argument(metavar="ID", help="Which one; see `list`.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All that is parked now.")] = False,
) -> None:
    """Send parked messages back to their queues. Commands are done within a day, whatever time their callers gave them."""
    if bool(parked_id) == everything:
        raise StartupFailed("say which message: an id of `rollcall parking list`, or --all")
    _run(lambda parking: _redrive(parking, parked_id))


async def _list(parking: Parking) -> None:
    lines: list[tuple[str, str]] = []
    async with aclosing(parking.messages()) as messages:
        async for parked in messages:
            columns = (parked.id, _when(parked), _queue(parked), what(parked.body), _why(parked, _REASON_SHOWN))
            lines.append((_when(parked), "  ".join(columns)))
    # The broker's order changes with every look; its times are whole seconds.
    for _, line in sorted(lines):
        typer.echo(line)
    typer.echo(f"{len(lines)} parked" if lines else "nothing is parked")


async def _show(parking: Parking, parked_id: str) -> None:
    async with _found(parking, parked_id) as parked:
        for name, value in (("id", parked.id), ("when", _when(parked)), ("queue", _queue(parked)), ("why", _why(parked))):
            typer.echo(f"{name:7}{value}")
        typer.echo(_readable(parked.body))


async def _redrive(parking: Parking, parked_id: str) -> None:
    if parked_id:
        async with _found(parking, parked_id) as parked:
            if not parked.queue:
                raise StartupFailed(f"{parked.id} cannot be sent back: nobody knows which queue it came from")
            await _send_back(parked)
        return
    kept = 0
    async with aclosing(parking.messages()) as messages:
        async for parked in messages:
            if parked.queue:
                await _send_back(parked)
            else:
                kept += 1
    if kept:
        raise StartupFailed(f"{kept} stay parked: nobody knows which queue they came from")


async def _send_back(parked: Parked) -> None:
    body = renewed(parked.body, now := utc_now())
    await parked.send_back(body)
    until = f", to be done until {rfc3339(now + REDRIVEN_FOR)}" if body != parked.body else ""
    typer.echo(f"{parked.id}  sent back to {parked.queue}{until}")


@asynccontextmanager
async def _found(parking: Parking, parked_id: str) -> AsyncIterator[Parked]:
    async with aclosing(parking.messages()) as messages:
        async for parked in messages:
            if parked.id == parked_id:
                yield parked
                return
    raise StartupFailed(f"no parked message has the id {_plain(parked_id)}; see `rollcall parking list`")


def what(body: bytes) -> str:
    """Say in a few words what a message is: its kinds, and the ids of the first few commands, or of the event."""
    try:
        message = json.decode(body)
    except _UNREADABLE:
        return f"{len(body)} bytes that are no JSON"
    if isinstance(message, dict):
        return f"{_plain(message.get('type'))} {_plain(message.get('id'))}"
    commands: list[Any] = [command for command in message if isinstance(command, dict)] if isinstance(message, list) else []
    if not commands:
        return "JSON that is no message"
    kinds = Counter(_plain(command.get("type")) for command in commands)
    ids = [_plain(command.get("command_id")) for command in commands[:_IDS_SHOWN]]
    more = ["…"] if len(commands) > _IDS_SHOWN else []
    return " ".join((*(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items()), *ids, *more))


def renewed(body: bytes, now: datetime) -> bytes:
    """Let commands be done although their time is over, and answer nobody: who asked was told long ago.

    Events, and what cannot be read, stay as they are.
    """
    try:
        commands = decode_commands(body)
    except MsgspecError:
        return body
    return b"[" + b",".join(encode(replace(command, deadline=now + REDRIVEN_FOR, reply_to=None)) for command in commands) + b"]"


def _when(parked: Parked) -> str:
    return rfc3339(parked.parked_at) if parked.parked_at else "unknown time"


def _queue(parked: Parked) -> str:
    return parked.queue or "unknown queue"


def _why(parked: Parked, characters: int | None = None) -> str:
    return _plain(parked.reason)[:characters]


def _readable(body: bytes) -> str:
    try:
        return json.format(json.encode(json.decode(body)), indent=2).decode()
    except _UNREADABLE:
        return repr(body)


def _plain(value: object) -> str:
    """Make a line of it that no terminal acts upon."""
    return "".join(character if character.isprintable() else " " for character in str(value))


def _run(doing: Callable[[Parking], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_parking(Settings.from_env(os.environ, needs=("ROLLCALL_AMQP_URL",)).amqp_url) as parking:
            await doing(parking)

    asyncio.run(run())
