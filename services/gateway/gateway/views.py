"""What callers see of an answer or an event: the only place where camelCase is made. Pure."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from shared.clock import rfc3339
from shared.errors import Refused
from shared.messages import Change, Record, RollClosed, RollJoined, RollRead, Statistics

View = dict[str, Any]


def roll(read: RollRead) -> View:
    """Show a whole roll (attendanceSessionData)."""
    return {
        "session_id": read.session.id,
        "session": read.session,
        "attendanceRecords": read.records,
        "statistics": read.statistics,
        "seq": read.seq,
    }


def started(read: RollRead) -> View:
    """Show a roll that has been opened (attendanceSessionStarted)."""
    return {**roll(read), "totalStudents": read.statistics.total_students}


def ended_confirm(read: RollRead) -> View:
    """Tell the caller that the session has ended (attendanceSessionEndedConfirm)."""
    return {"session_id": read.session.id, "finalData": roll(read)}


def joined(answer: RollJoined) -> View:
    """Tell a student that they are in (attendanceSessionJoined)."""
    return {
        "session_id": answer.session_id,
        "message": "Successfully joined attendance session",
        "status": answer.status,
        "joined_at": answer.joined_at,
        "seq": answer.seq,
        "receipt": None,
    }


def student_joined(session_id: str, change: Change) -> View:
    """Tell staff that a student has joined (studentJoinedAttendance)."""
    return {
        "session_id": session_id,
        "student_id": change.student_id,
        "student_name": change.student_name,
        "joined_at": change.joined_at,
        "status": change.after,
        "seq": change.seq,
    }


def progress(session_id: str, statistics: Statistics, seq: int) -> View:
    """Tell the room how the roll fills (attendanceProgress)."""
    return {"session_id": session_id, "statistics": statistics, "seq": seq}


def ended(closed: RollClosed, read: RollRead, records: Iterable[Record]) -> View:
    """Tell that the session has ended (attendanceSessionEnded), with the records this listener may see."""
    final = {**roll(read), "attendanceRecords": tuple(records)}
    return {
        "session_id": closed.session_id,
        "cause": closed.cause,
        "finalData": final,
        "ended_by": closed.ended_by,
        "ended_by_id": closed.ended_by_id,
        "ended_at": closed.ended_at,
    }


def acknowledged(view: View, now: datetime) -> View:
    """Acknowledge a command that was done."""
    return {"ok": True, **view, "server_time": rfc3339(now)}


def refusal(refused: Refused) -> View:
    """Show why a command was refused."""
    error: View = {"code": refused.code, "message": refused.message, "retryable": refused.retryable}
    if refused.details:
        error["details"] = refused.details
    return error
