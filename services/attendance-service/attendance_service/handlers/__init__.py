"""What attendance-service does: one handler for each command and each event it cares for, over a batch."""

from attendance_service.handlers.announcements import Announcements
from attendance_service.handlers.commands import Commands
from attendance_service.handlers.reads import Reads
from attendance_service.handlers.session_events import SessionEvents
from attendance_service.store import RollStore
from shared.clock import Clock
from shared.live import Names
from shared.messages import (
    AwaitNews,
    ClearMark,
    CourseChanged,
    JoinRoll,
    MarkRecord,
    MarkRecords,
    ReadActiveSessions,
    ReadChanges,
    ReadHistory,
    ReadOwnRecords,
    ReadRoll,
    SessionCancelled,
    SessionChanged,
    SessionEnded,
    SessionStarted,
    SubmitRoll,
    SummarizeCourse,
    SyncRoll,
)
from shared.worker import Handlers


def table(rolls: RollStore, names: Names, now: Clock) -> Handlers:
    """Say what handles what; this is the map of the service."""
    announcements = Announcements(names)
    commands = Commands(rolls, announcements, now)
    sessions = SessionEvents(rolls, announcements, now)
    reads = Reads(rolls)
    return {
        JoinRoll: commands.join_roll,
        MarkRecord: commands.mark_record,
        MarkRecords: commands.mark_records,
        ClearMark: commands.clear_mark,
        SubmitRoll: commands.submit_roll,
        SyncRoll: reads.sync_roll,
        ReadRoll: reads.read_roll,
        ReadChanges: reads.read_changes,
        ReadHistory: reads.read_history,
        ReadOwnRecords: reads.read_own_records,
        ReadActiveSessions: reads.read_active_sessions,
        SummarizeCourse: reads.summarize_course,
        AwaitNews: reads.await_news,
        SessionStarted: sessions.open_roll,
        SessionEnded: sessions.close_roll,
        SessionCancelled: sessions.cancel_roll,
        SessionChanged: sessions.change_roll,
        CourseChanged: sessions.keep_course,
    }
