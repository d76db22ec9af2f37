"""What a batch makes of rolls before it is written: what was read, and the steps that the rules took on it. No SQL."""

from attendance_service.rules import Record, Roll, Step
from shared.outbox import OutboxRow


class Draft:
    """Rolls and records as they were read, and the steps taken on them so far."""

    def __init__(self) -> None:
        self.rolls: dict[str, Roll] = {}
        self.records: dict[tuple[str, str], Record] = {}
        self.steps: list[Step] = []
        self.events: list[OutboxRow] = []
        """What leaves with the commit."""
        self.kept: list[tuple[str, int, bytes]] = []
        """Events of the rolls themselves: session id, number and body."""

    def take(self, step: Step) -> None:
        """Take a step: later decisions in this draft see it, and it is written at the end."""
        session_id, record = step.entry.session_id, step.record
        self.rolls[session_id] = step.roll
        if record is not None:
            self.records[session_id, record.student_id] = record
        self.steps.append(step)

    def keep(self, session_id: str, seq: int, body: bytes) -> None:
        """Keep an event of the roll itself, for whoever must hear it again."""
        self.kept.append((session_id, seq, body))
