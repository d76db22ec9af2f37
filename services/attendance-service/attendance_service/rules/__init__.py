"""The rules of the roll, pure: what a roll is, what may change it, and what each change makes of it.

Nothing here does I/O or reads a clock. A rule takes the roll and the record as they stand and returns a `Step`, or raises
`Refused` with a code of the contract.
"""

from attendance_service.rules.authority import may_read, may_read_courses, sees_all, staff
from attendance_service.rules.joins import admit, join
from attendance_service.rules.lifecycle import cancel, close, open_roll, reopen, submit
from attendance_service.rules.marks import clear, mark, mark_all
from attendance_service.rules.rolls import Entry, Record, Roll, Step, change, statistics, view
from attendance_service.rules.sessions import follow, follow_roster, redecide

__all__ = [
    "Entry",
    "Record",
    "Roll",
    "Step",
    "admit",
    "cancel",
    "change",
    "clear",
    "close",
    "follow",
    "follow_roster",
    "join",
    "mark",
    "mark_all",
    "may_read",
    "may_read_courses",
    "open_roll",
    "redecide",
    "reopen",
    "sees_all",
    "staff",
    "statistics",
    "submit",
    "view",
]
