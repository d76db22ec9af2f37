"""What callers see of an answer or an event, camelCase and all; `answers` and `reports` have what HTTP alone shows. Pure."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from shared.clock import rfc3339
from shared.errors import Refused
from shared.messages import (
    ActiveSession,
    Change,
    MarksStored,
    MarkStored,
    Record,
    RollClosed,
    RollJoined,
    RollOpened,
    RollRead,
    RollSubmitted,
    RollSynced,
    Session,
    Source,
    Statistics,
    Submission,
)

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


def cancelled(session: Session) -> View:
    """Tell the caller that the session is cancelled."""
    return {"session_id": session.id, "session": session}


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


def student_back(record: Record, known_seq: int) -> View:
    """Tell staff, who know the roll as of a number, that a student who had left is connected again: how they stand by now."""
    return {
        "session_id": record.session_id,
        "student_id": record.student_id,
        "student_name": record.student_name,
        "joined_at": record.joined_at,
        "status": record.status,
        "seq": min(record.seq, known_seq),
    }


def synced(answer: RollSynced) -> View:
    """Show what changed on a roll (the acknowledgement of syncAttendanceSession)."""
    return {
        "session_id": answer.session.id,
        "mode": answer.mode,
        "session": answer.session,
        "attendanceRecords": answer.records,
        "statistics": answer.statistics,
        "seq": answer.seq,
    }


def marked(answer: MarkStored) -> View:
    """Acknowledge a mark with what others hear of it (attendanceUpdated)."""
    return {
        "session_id": answer.record.session_id,
        "student_id": answer.record.student_id,
        "status": answer.record.status,
        "attendanceRecord": answer.record,
        "statistics": answer.statistics,
        "updated_by": answer.updated_by,
        "updated_by_id": answer.updated_by_id,
        "updated_at": answer.updated_at,
        "seq": answer.seq,
    }


def marked_as(answer: MarkStored) -> View:
    """Tell the caller what their mark made of the record (studentMarkedPresent and its sisters)."""
    record = answer.record
    return {"session_id": record.session_id, "student_id": record.student_id, "attendanceRecord": record}


def bulk_complete(answer: MarksStored) -> View:
    """Tell the caller that their bulk is done (attendanceBulkUpdateComplete)."""
    return {
        "session_id": answer.session_id,
        "updatedRecords": answer.records,
        "totalUpdated": len(answer.records),
        "seq": answer.seq,
    }


def submitted(said: Submission | RollSubmitted, seq: int) -> View:
    """Tell that a roll was submitted (attendanceSubmitted)."""
    return {
        "session_id": said.session_id,
        "submitted_by": said.submitted_by,
        "submitted_by_id": said.submitted_by_id,
        "submitted_at": said.submitted_at,
        "statistics": said.statistics,
        "seq": seq,
    }


def updated(session_id: str, change: Change, statistics: Statistics) -> View:
    """Tell that a record changed (attendanceUpdated)."""
    return {
        "session_id": session_id,
        "student_id": change.student_id,
        "status": change.after,
        "attendanceRecord": record_after(session_id, change),
        "statistics": statistics,
        "updated_by": change.actor_name,
        "updated_by_id": change.actor,
        "updated_at": change.at,
        "seq": change.seq,
    }


def bulk_updated(session_id: str, changes: Sequence[Change], seq: int) -> View:
    """Tell staff of records that were marked together (attendanceBulkUpdated)."""
    last = changes[-1]
    return {
        "session_id": session_id,
        "updatedRecords": [record_after(session_id, change) for change in changes],
        "updated_by": last.actor_name,
        "updated_by_id": last.actor,
        "updated_at": last.at,
        "seq": seq,
    }


def record_after(session_id: str, change: Change) -> Record:
    """Show the record as a change left it; not for joins, which may leave a mark above them."""
    if change.student_id is None or change.after is None:
        raise ValueError(f"not the change of a record: {change}")
    mark = change.kind == "marked"
    own: Source = "self" if change.joined_at else "system"
    return Record(
        session_id=session_id,
        student_id=change.student_id,
        student_name=change.student_name or "",
        status=change.after,
        remarks=change.remarks if mark else None,
        source=change.source if mark else own,
        marked_by=change.actor if mark else None,
        marked_at=change.at if mark else None,
        joined_at=change.joined_at,
        seq=change.seq,
    )


def student_left(session_id: str, student_id: str, left_at: str) -> View:
    """Tell staff that a student is no longer connected (studentLeft)."""
    return {"session_id": session_id, "student_id": student_id, "left_at": left_at}


def session_left(session_id: str) -> View:
    """Tell a student that they hear no more of the session (attendanceSessionLeft)."""
    return {"session_id": session_id}


def online(read: RollRead, connected: Collection[str]) -> View:
    """Show which of those who joined are connected now (onlineStudentsData)."""
    joined = [record for record in read.records if record.joined_at is not None]
    here = [record for record in joined if record.student_id in connected]
    return {
        "session_id": read.session.id,
        "total_joined": len(joined),
        "online_count": len(here),
        "online_students": [
            {"student_id": record.student_id, "student_name": record.student_name, "joined_at": record.joined_at}
            for record in here
        ],
    }


def active_sessions(course_id: str, sessions: Sequence[ActiveSession]) -> View:
    """Show a course's active sessions (activeSessionsData)."""
    return {"course_id": course_id, "activeSessions": sessions}


def course_session_started(opened: RollOpened) -> View:
    """Tell a course's watchers that a session is on (courseSessionStarted)."""
    return {
        "course_id": opened.course_id,
        "session_id": opened.session_id,
        "session_topic": opened.session.topic,
        "teacher_name": opened.opened_by,
        "total_students": opened.statistics.total_students,
        "started_at": opened.session.started_at,
    }


def course_session_ended(closed: RollClosed) -> View:
    """Tell a course's watchers that a session is over (courseSessionEnded)."""
    return {
        "course_id": closed.course_id,
        "session_id": closed.session_id,
        "final_statistics": closed.statistics,
        "ended_by": closed.ended_by,
        "ended_by_id": closed.ended_by_id,
        "ended_at": closed.ended_at,
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
    if refused.retry_after_ms is not None:
        error["retry_after_ms"] = refused.retry_after_ms
    return error
