"""What is logged of an exception: what it is and where it was raised, and not a word of what it says.

The text of an exception may hold anything that somebody sent: Postgres quotes the row that breaks a constraint, a codec
quotes what it cannot read. Names, remarks and tokens must not reach a log that way; who needs the text finds it with
the parked message.
"""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any


def trace(error: BaseException) -> str:
    """Tell where an exception was raised and what kind it is, after those that led to it; SQL errors with their state."""
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = _lines(before, seen) if before is not None and id(before) not in seen else []
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            lines += _lines(each, seen)
    lines += [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    facts = [str(fact) for name in ("sqlstate", "constraint_name") if (fact := getattr(error, name, None))]
    return [*lines, " ".join([f"{type(error).__module__}.{type(error).__qualname__}", *facts])]


def without_words(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put the trace in place of an exception (a structlog processor)."""
    given = event.pop("exc_info", None)
    if given is True:
        given = sys.exc_info()
    if isinstance(given, tuple):
        given = given[1]
    if isinstance(given, BaseException):
        event["exception"] = trace(given)
    return event


class WordlessFormatter(logging.Formatter):
    """For what the libraries log."""

    def formatException(self, ei: Any) -> str:
        """Tell the trace."""
        return trace(ei[1])
