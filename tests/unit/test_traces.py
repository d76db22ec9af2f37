"""What is logged of an exception: where and what kind, and nothing of what it says."""

import io
import json
import logging
import subprocess
import sys
from typing import Any

import pytest
import structlog

from gateway.engine.server import quiet_logger
from shared.traces import WordlessFormatter, trace, without_words

SECRET = "Annette Kolb said so"


class Violation(Exception):
    """As Postgres' driver raises it."""

    sqlstate = "23514"
    constraint_name = "records_status"


def failed() -> BaseException:
    """An exception with causes, contexts and a group, each of which says too much."""
    try:
        try:
            try:
                raise Violation(SECRET)
            except Violation as error:
                raise ValueError(SECRET) from error
        except ValueError:
            raise ExceptionGroup(SECRET, [KeyError(SECRET), ExceptionGroup(SECRET, [OSError(SECRET)])])  # noqa: B904
    except ExceptionGroup as error:
        return error


def test_a_trace_names_every_exception_in_order_and_where_it_was_raised() -> None:
    told = trace(failed())

    assert SECRET not in told
    kinds = [line for line in told.splitlines() if not line.startswith(" ")]
    assert kinds[0] == f"{__name__}.Violation 23514 records_status"
    assert kinds[1:] == [
        "builtins.ValueError",
        "builtins.KeyError",
        "builtins.OSError",
        *["builtins.ExceptionGroup"] * 2,
    ]
    assert told.count(f'File "{__file__}"') == 3
    assert "in failed" in told


def test_an_exception_that_is_its_own_context_ends() -> None:
    error = ValueError(SECRET)
    error.__context__ = RuntimeError(SECRET)
    error.__context__.__context__ = error

    assert trace(error) == "builtins.RuntimeError\nbuiltins.ValueError"


@pytest.mark.parametrize("how", ["exception", "exc_info", "info"])
def test_a_line_of_ours_has_the_trace_and_no_words(how: str) -> None:
    out = io.StringIO()
    log = structlog.wrap_logger(structlog.WriteLogger(out), processors=[without_words, structlog.processors.JSONRenderer()])
    error = failed()
    try:
        raise error
    except BaseException:
        match how:
            case "exception":
                log.error("failed", exc_info=True)
            case "exc_info":
                log.error("failed", exc_info=error)
            case "info":
                log.error("failed", exc_info=(type(error), error, error.__traceback__))
    [line] = out.getvalue().splitlines()

    assert SECRET not in line
    assert "builtins.ValueError" in json.loads(line)["exception"]


def logged(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, *args: Any, exc_info: Any = None) -> str:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(WordlessFormatter("%(name)s: %(message)s"))
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    logger.error(*args, exc_info=exc_info)
    return out.getvalue()


def test_a_line_of_a_library_has_the_trace_and_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    line = logged(logging.getLogger("aiohttp.server"), monkeypatch, "Error handling request", exc_info=failed())

    assert line.startswith("aiohttp.server: Error handling request\n")
    assert "builtins.ValueError" in line
    assert SECRET not in line


def test_a_line_of_socketio_is_one_line_without_what_a_client_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    line = logged(quiet_logger(), monkeypatch, "%s is not connected to namespace %s", SECRET, SECRET, exc_info=failed())

    assert line == "rollcall.socketio: %s is not connected to namespace %s: ExceptionGroup\n"


def test_what_nobody_awaits_is_logged_without_words() -> None:
    """asyncio itself would quote the exception."""
    script = """
import asyncio, gc, sys
from shared.process import configure_logging, run

async def fail():
    raise ValueError(sys.argv[1])

async def main():
    configure_logging("debug")
    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    del task
    gc.collect()

raise SystemExit(run(main))
"""
    # Not in the script, of which Python 3.13 quotes a line.
    done = subprocess.run([sys.executable, "-c", script, SECRET], capture_output=True, text=True, check=True, timeout=60)
    [line] = done.stderr.splitlines()
    told = json.loads(line)
    assert (told["event"], told["about"]) == ("process.unawaited", "Task exception was never retrieved")
    assert "builtins.ValueError" in told["exception"]
    assert SECRET not in line
