"""Rolls as this process wrote them last, so that the next batch at one of them need not be read.

None of it is the truth. What is decided on it is written only where the roll's row is still the one known here, and by that
the records are as well (`attempts`); what is not written is decided again on what is read.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Final

from attendance_service.rules import Record, Roll
from attendance_service.store.attempts import Attempt
from attendance_service.store.units import Unit

MOST_RECORDS: Final = 50_000
"""How many records are kept, of all rolls together, a roll itself counting as one: some 20 MB."""
LARGEST_ROLL: Final = 2_000
"""A roll of more students is not read whole: that would hold up those who wait."""
_MOST_ROLLS: Final = 10_000
_WHOLE_AT_ONCE: Final = 4
"""How many rolls are read whole in one batch: those who wait for it are not to pay for what others will spare."""
_FIRST, _CONTESTED = 3, 16
"""For how many batches only the records touched are read: of a roll that was opened elsewhere or has been changed under its
lock, and of one that another replica has changed. Where hundreds join in one batch, few batches are all there are."""

_NEVER: Final = 1 << 62


class _Kept:
    __slots__ = ("records", "roll", "version")

    def __init__(self, roll: Roll, version: int, records: dict[str, Record]) -> None:
        self.roll = roll
        self.version = version
        self.records = records


class Known:
    """The rolls that were at work lately, each with all its records."""

    def __init__(self, most_records: int = MOST_RECORDS) -> None:
        self._most_records = most_records
        self._rolls: OrderedDict[str, _Kept] = OrderedDict()
        """The longest unused first."""
        self._records = 0
        self._patience: OrderedDict[str, int] = OrderedDict()
        """For how many batches more a roll is not read whole."""

    def attempt(self, keys: Collection[tuple[str, str]]) -> Attempt | None:
        """Draw up an attempt on these records (session id, student id); None unless all their rolls are known."""
        attempt = Attempt()
        for session_id, student_id in keys:
            kept = self._rolls.get(session_id)
            if kept is None:
                return None
            if session_id not in attempt.rolls:
                self._rolls.move_to_end(session_id)
                attempt.rolls[session_id] = kept.roll
                attempt.versions[session_id] = kept.version
            if (record := kept.records.get(student_id)) is not None:
                attempt.records[session_id, student_id] = record
        return attempt

    def to_read_whole(self, session_ids: Set[str]) -> list[str]:
        """Say which of these rolls, about to be read, are to be read whole: some of those at work for longer, and only here.

        None while there is no room for them: what is read would go before it is of use.
        """
        whole: list[str] = []
        for session_id in session_ids - self._rolls.keys():
            left = self._patience.get(session_id, _FIRST)
            if left:
                self._wait(session_id, left - 1)
            elif len(whole) < _WHOLE_AT_ONCE and self._records < self._most_records:
                whole.append(session_id)
        return whole

    def written(self, unit: Unit) -> None:
        """Keep the rolls that a unit has opened, and forget the others it is about, now that it is written."""
        for session_id in unit.rolls.keys() - unit.opened.keys():
            self._forget(session_id, _FIRST)
        records: dict[str, dict[str, Record]] = {session_id: {} for session_id in unit.opened}
        for (session_id, student_id), record in unit.records.items():
            if session_id in records:
                records[session_id][student_id] = record
        for session_id, version in unit.opened.items():
            self._put(session_id, _Kept(unit.rolls[session_id], version, records[session_id]))
        self._keep_within_bounds()

    def met(self, rolls: Iterable[Roll]) -> None:
        """Take note of rolls that were read, and of those that are too large to be read whole."""
        for roll in rolls:
            if roll.absent + roll.present + roll.late + roll.excused > LARGEST_ROLL:
                self._wait(roll.session_id, _NEVER)

    def keep(self, attempt: Attempt, versions: Mapping[str, int]) -> None:
        """Keep what an attempt has made of rolls that were known or read whole, now that it is written as these versions."""
        changed: dict[str, dict[str, Record]] = {}
        for step in attempt.steps:
            if step.record is not None:
                changed.setdefault(step.record.session_id, {})[step.record.student_id] = step.record
        for session_id, records in attempt.whole.items():
            self._put(session_id, _Kept(attempt.rolls[session_id], attempt.versions[session_id], records))
        for session_id, records in changed.items():
            if (kept := self._rolls.get(session_id)) is None:
                continue
            if kept.version == attempt.versions[session_id]:
                kept.roll, kept.version = attempt.rolls[session_id], versions[session_id]
                kept.records.update(records)
            else:
                self._drop(session_id)
        self._keep_within_bounds()

    def contested(self, session_ids: Iterable[str]) -> None:
        """Forget rolls that another replica has changed: while both are at them, what either knows is old."""
        for session_id in session_ids:
            self._forget(session_id, _CONTESTED)

    def _forget(self, session_id: str, batches: int) -> None:
        self._drop(session_id)
        self._wait(session_id, batches)

    def _keep_within_bounds(self) -> None:
        while self._records > self._most_records:
            self._forget(next(iter(self._rolls)), _CONTESTED)

    def _put(self, session_id: str, kept: _Kept) -> None:
        self._drop(session_id)
        self._rolls[session_id] = kept
        self._records += 1 + len(kept.records)

    def _drop(self, session_id: str) -> None:
        if (kept := self._rolls.pop(session_id, None)) is not None:
            self._records -= 1 + len(kept.records)

    def _wait(self, session_id: str, batches: int) -> None:
        self._patience[session_id] = batches
        self._patience.move_to_end(session_id)
        if len(self._patience) > _MOST_ROLLS:
            self._patience.popitem(last=False)
