"""What the two libraries raise and log, in our own words: a start that fails, a connection that is lost."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aio_pika.connection import make_url
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, InvalidFrameError
from yarl import URL

from shared.errors import StartupFailed
from shared.link import CONNECT_TIMEOUT_SECONDS

SETTING: Final = "ROLLCALL_AMQP_URL"


def quiet() -> None:
    """Silence both libraries: they log every lost connection several times, with tracebacks; `link` says it once."""
    for name in ("aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def reaching(url: URL | str) -> Iterator[URL]:
    """Turn what connecting to this address raises into a StartupFailed of one line, without the password."""
    address = make_url(url)
    where = f"{SETTING}: cannot reach {address.scheme}://{address.host}:{address.port}/{address.path.lstrip('/')}"
    try:
        yield address
    except InvalidFrameError as error:
        # The refusal of a virtual host reaches us as this, without the broker's words.
        raise StartupFailed(f"{where}: there is no such virtual host, or this user may not use it") from error
    except TimeoutError as error:
        raise StartupFailed(f"{where}: no answer within {CONNECT_TIMEOUT_SECONDS:g} s") from error
    except CONNECTION_EXCEPTIONS as error:
        raise StartupFailed(f"{where}: {reason(error)}") from error


@contextmanager
def own_cancellations() -> Iterator[None]:
    """Let only our own cancellation through.

    When the heartbeat stops, aiormq fails everything that waits on the connection with CancelledError: left alone, that
    would end a task of ours for good, and silently.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ConnectionError("the connection was lost") from error


def reason(error: BaseException | None) -> str:
    """Say in a line what a library's error says in its own way."""
    if error is None:
        return "closed"
    if isinstance(error, asyncio.CancelledError):
        return "no heartbeat from the broker"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next((arg for arg in reversed(error.args) if isinstance(arg, str) and arg), "")
    return " ".join(text.split()) or type(error).__name__
