"""The command line: `rollcall dev | migrate | token | try | parking`."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import socketio
import typer

from rollcall import demo, dev, parking, trial
from rollcall.dev import Place
from rollcall.migrations import migrate as migrate_schemas
from shared.clock import utc_now
from shared.errors import StartupFailed
from shared.messages import Actor
from shared.process import run
from shared.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
trying = typer.Typer(no_args_is_help=True, help="Try it out against a running Rollcall.")
app.add_typer(trying, name="try")
app.add_typer(parking.app, name="parking")


class RoleName(StrEnum):
    """The roles of the contract."""

    student = "student"
    teacher = "teacher"
    admin = "admin"
    service = "service"


Url = Annotated[str, typer.Option(help="Where Rollcall runs.")]
Token = Annotated[str, typer.Option(help="A token; without one, one is minted for the demo course.", envvar="ROLLCALL_TOKEN")]
DEFAULT_URL = "http://127.0.0.1:8080"


@app.command(name="dev")
def everything() -> None:
    """Run everything in one process, with private servers: what `make run` does."""
    place = Place.of(os.environ)
    with dev.private_servers(place, os.environ) as settings:
        status = run(lambda: dev.main(settings, place, dev.ROSTER.read_bytes()))
    raise typer.Exit(status)


@app.command()
def migrate() -> None:
    """Bring the database at ROLLCALL_DATABASE_URL to the newest schema."""
    migrate_schemas(Settings.from_env(os.environ, needs=("ROLLCALL_DATABASE_URL",)).database_url)
    typer.echo("migrated: sessions, attendance")


@app.command()
def token(
    role: Annotated[RoleName, typer.Option(help="What the bearer is.")],
    sub: Annotated[str, typer.Option(help="The bearer's user id.")],
    name: Annotated[str, typer.Option(help="The bearer's name; the id when not given.")] = "",
    hours: Annotated[float, typer.Option(help="How long it lasts.", min=0, max=24 * 366)] = 24,
) -> None:
    """Mint a token for trying out, with ROLLCALL_JWT_SECRET or else the key of the local `rollcall dev`."""
    typer.echo(demo.token_for(Actor(sub, name or sub, role.value), _settings(), utc_now(), timedelta(hours=hours)))


@trying.command(name="start")
def try_start(session_id: str, url: Url = DEFAULT_URL, token: Token = "") -> None:
    """Start a session as its teacher and watch the roll fill."""
    _try(trial.start, url, token or demo.token_for(demo.TEACHER, _settings(), utc_now()), session_id)


@trying.command(name="end")
def try_end(session_id: str, url: Url = DEFAULT_URL, token: Token = "") -> None:
    """End a session as its teacher."""
    _try(trial.end, url, token or demo.token_for(demo.TEACHER, _settings(), utc_now()), session_id)


@trying.command(name="join")
def try_join(
    session_id: str,
    url: Url = DEFAULT_URL,
    token: Token = "",
    student: Annotated[str, typer.Option("--as", help="Which student of examples/roster.csv.")] = "s001",
) -> None:
    """Join a session as a student."""
    _try(trial.join, url, token or demo.token_for(Actor(student, student, "student"), _settings(), utc_now()), session_id)


def _settings() -> Settings:
    settings = Settings.from_env(os.environ)
    if settings.jwt_secret:
        return settings
    if settings.jwt_jwks_url:
        raise StartupFailed("ROLLCALL_JWT_JWKS_URL is set: tokens come from whoever publishes those keys, not from here")
    path: Path = Place.of(os.environ).folder / "secret"
    if not path.exists():
        raise StartupFailed(f"no key: set ROLLCALL_JWT_SECRET, or run `make run` first ({path} is not there)")
    return replace(settings, jwt_secret=path.read_text().strip())


def _try(attempt: Callable[[str, str, str], Coroutine[Any, Any, int]], url: str, token: str, session_id: str) -> None:
    try:
        status = asyncio.run(attempt(url, token, session_id))
    except socketio.exceptions.ConnectionError as error:
        raise StartupFailed(f"cannot connect to {url}: {error}") from error
    except socketio.exceptions.TimeoutError as error:
        raise StartupFailed(f"{url} did not answer in time") from error
    except KeyboardInterrupt:
        status = 130
    raise typer.Exit(status)


def main() -> None:
    """Run the command; an operator's mistake is one line and exit status 1."""
    try:
        app()
    except StartupFailed as error:
        print(f"rollcall: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
