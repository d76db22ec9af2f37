"""A roll as one client keeps it: from the events that reach it in order, and from a sync at every gap."""

from dataclasses import dataclass, field

from tests.system.talk import Payload

Standing = tuple[str, str | None, int]
"""How a student stands: status, time of joining, number of the last change."""

HEARD = frozenset(
    {
        "attendanceSessionStarted",
        "attendanceUpdated",
        "attendanceBulkUpdated",
        "studentJoinedAttendance",
        "attendanceProgress",
        "attendanceSessionEnded",
        "attendanceSubmitted",
    }
)
"""The events that say something of a roll's records."""


@dataclass
class Copy:
    """One client's roll.

    A student's holds one record, sees no gaps, and takes no number from what says nothing of records: that of their own
    join reaches them with the answer alone.
    """

    whole: bool = True
    seq: int | None = None
    standing: dict[str, Standing] = field(default_factory=dict)
    syncs: int = 0

    def lacking(self) -> Payload:
        """What to ask for in a sync."""
        return {} if self.seq is None else {"since_seq": self.seq}

    def take(self, answer: Payload) -> None:
        """Take the answer to a sync; one that was overtaken by events, or by another sync, is old."""
        assert answer["ok"], answer
        self.syncs += 1
        if self.seq is None or answer["seq"] >= self.seq:
            self._put(answer["attendanceRecords"], answer["seq"])

    def hear(self, event: str, payload: Payload) -> bool:
        """Apply one event, unless it is old; say no when it leaves a gap, or does not say enough: then sync."""
        if event in ("attendanceSessionEnded", "attendanceSessionStarted"):
            roll = payload.get("finalData", payload)
            if self.seq is None or roll["seq"] > self.seq:
                self._put(roll["attendanceRecords"], roll["seq"])
            return True
        records = payload["updatedRecords"] if event == "attendanceBulkUpdated" else []
        first = records[0]["seq"] if records else payload["seq"]
        if self.seq is not None and payload["seq"] <= self.seq:
            return True
        says_no_record = event in ("attendanceProgress", "attendanceSubmitted")
        if says_no_record and not self.whole:
            return True
        if self.seq is None or says_no_record or (self.whole and first > self.seq + 1):
            return False
        if event == "studentJoinedAttendance":
            self.standing[payload["student_id"]] = (payload["status"], payload["joined_at"], payload["seq"])
        else:
            self._put(records or [payload["attendanceRecord"]], payload["seq"])
        self.seq = payload["seq"]
        return True

    def take_join(self, student_id: str, answer: Payload) -> None:
        """Take what a student's own join was answered: their record, unless it has changed since."""
        if self.seq is None or answer["seq"] > self.seq:
            self.standing[student_id] = (answer["status"], answer["joined_at"], answer["seq"])
            self.seq = answer["seq"]

    def _put(self, records: list[Payload], seq: int) -> None:
        for record in records:
            self.standing[record["student_id"]] = (record["status"], record["joined_at"], record["seq"])
        self.seq = seq
