"""The refusals a caller can meet, each with its code, and the errors an operator can meet.

The codes and their HTTP statuses are the contract's (docs/contract.md, "Error codes"); this table is their only copy in code.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple


class Kind(NamedTuple):
    """What a code means by default: its HTTP status, whether the same request may succeed later, its message."""

    status: int
    retryable: bool
    message: str


CODES: Final[Mapping[str, Kind]] = {
    "unauthenticated": Kind(401, False, "A valid token is needed"),
    "token_expired": Kind(401, False, "The token has expired"),
    "forbidden": Kind(403, False, "This is not yours to do"),
    "invalid": Kind(400, False, "The request is not well formed"),
    "course_not_found": Kind(404, False, "No such course"),
    "session_not_found": Kind(404, False, "No such session"),
    "session_not_active": Kind(409, False, "The session is not active"),
    "session_cancelled": Kind(409, False, "The session has been cancelled"),
    "session_completed": Kind(409, False, "The session has ended"),
    "roll_submitted": Kind(409, False, "The roll has been submitted"),
    "reason_required": Kind(409, False, "A submitted roll is amended with a reason"),
    "not_enrolled": Kind(404, False, "Not on this roll"),
    "check_in_closed": Kind(403, False, "Check-in has closed"),
    "code_required": Kind(403, False, "The code shown in the room is needed"),
    "code_wrong": Kind(403, False, "That is not the code shown in the room"),
    "outside_area": Kind(403, False, "Too far from the room"),
    "outside_network": Kind(403, False, "Not on the room's network"),
    "conflict": Kind(409, False, "Somebody else was first"),
    "rate_limited": Kind(429, True, "Too many requests"),
    "timeout": Kind(504, True, "Not begun in time; nothing was changed or it is safe to send again"),
    "unavailable": Kind(503, True, "A part of the service is away; send it again"),
    "not_found": Kind(404, False, "No such page"),
    "internal": Kind(500, False, "Something went wrong here"),
}

NO_ROLL: Final = "no_roll"
"""Between services only: attendance-service knows no such roll, and the gateway asks session-service why."""


class Refused(Exception):
    """An expected refusal of a caller's request: a code of the contract, never a surprise, never a traceback.

    `details` has one `{"field", "message"}` (or `{"line", "message"}`) for each fault found; a `conflict` shows there what it
    met. `retry_after_ms` is for `rate_limited`: how long to wait before the same request will be taken.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        retryable: bool | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        retry_after_ms: int | None = None,
    ) -> None:
        kind = CODES.get(code)
        self.code = code
        self.message = message or (kind.message if kind else code)
        self.retryable = retryable if retryable is not None else bool(kind and kind.retryable)
        self.details = tuple(details)
        self.retry_after_ms = retry_after_ms
        super().__init__(f"{code}: {self.message}")


class Unavailable(Exception):
    """A server this process needs did not answer; the same work may succeed later."""


class NotYet(Exception):
    """An event came before what it builds on; it is tried again a little later."""


class StartupFailed(Exception):
    """An operator's mistake or a server that is not there at start: one line, then exit 1."""
