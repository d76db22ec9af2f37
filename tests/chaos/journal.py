"""What clients remember of a run, for the checker: every command they sent, and what they were answered. No I/O."""

from collections import Counter
from dataclasses import dataclass, field

from tests.system.copies import Copy
from tests.system.talk import Payload


@dataclass
class Sent:
    """One command, however often it was sent. Times are monotonic seconds."""

    user_id: str
    session_id: str
    event: str
    payload: Payload
    sent_at: float
    attempts: int = 0
    answered_at: float | None = None
    answer: Payload | None = None
    """The last answer: nothing that may be sent again. None: none yet."""
    why_again: Counter[str] = field(default_factory=Counter)
    repeated: list[Payload] = field(default_factory=list)
    """What it was answered when it was sent once more although it had been answered."""

    @property
    def command_id(self) -> str:
        """Its id, the same each time."""
        return str(self.payload["command_id"])

    @property
    def accepted(self) -> bool:
        """Whether it was answered ok."""
        return self.answer is not None and bool(self.answer["ok"])

    @property
    def code(self) -> str | None:
        """With what it was refused, if it was."""
        return None if self.answer is None or self.answer["ok"] else str(self.answer["error"]["code"])

    def __str__(self) -> str:
        return f"{self.event} {self.command_id} by {self.user_id} on {self.session_id}"


@dataclass
class Views:
    """What one client has seen: a copy of each roll, and how often a row that it must not see."""

    user_id: str
    student: bool
    copies: dict[str, Copy] = field(default_factory=dict)
    following: set[str] = field(default_factory=set)
    leaks: list[str] = field(default_factory=list)
    connects: int = 0

    def copy_of(self, session_id: str) -> Copy:
        """Its copy of a roll; a student's holds one record."""
        return self.copies.setdefault(session_id, Copy(whole=not self.student))

    def look_for_leaks(self, event: str, said: object) -> None:
        """Note every row of somebody else in what a student is told."""
        if isinstance(said, dict):
            if said.get("student_id", self.user_id) != self.user_id:
                self.leaks.append(f"{self.user_id} saw {said['student_id']} in {event}")
            for part in said.values():
                self.look_for_leaks(event, part)
        elif isinstance(said, list):
            for part in said:
                self.look_for_leaks(event, part)
