"""What session-service does: one handler for each command and for each event it cares for."""

from session_service.batches import beginning, each, together
from session_service.handlers.courses import (
    archive_course,
    courses_seen,
    list_courses,
    put_course,
    read_course,
    read_standing,
)
from session_service.handlers.order import by_course, by_session
from session_service.handlers.rolls import roll_closed, roll_opened
from session_service.handlers.rosters import enrol_student, put_roster, read_outline, read_roster, remove_student
from session_service.handlers.sessions import (
    change_session,
    create_session,
    explain_no_roll,
    list_sessions,
    read_session,
    sessions_seen,
)
from session_service.handlers.turns import cancel_session, end_session, reopen_session, start_session
from session_service.store import Store
from shared.clock import Clock
from shared.live import Names
from shared.messages import (
    ArchiveCourse,
    CancelSession,
    ChangeSession,
    CreateSession,
    EndSession,
    EnrolStudent,
    ExplainNoRoll,
    ListCourses,
    ListSessions,
    PutCourse,
    PutRoster,
    ReadCourse,
    ReadOutline,
    ReadRoster,
    ReadSession,
    ReadStanding,
    RemoveStudent,
    ReopenSession,
    RollClosed,
    RollOpened,
    StartSession,
)
from shared.worker import Handlers


def table(store: Store, names: Names, clock: Clock) -> Handlers:
    """Say what handles what; this is the map of the service."""
    begin = beginning(store, names, clock)
    return {
        PutCourse: each(begin, put_course, in_order=by_course),
        ArchiveCourse: each(begin, archive_course, in_order=by_course),
        ReadCourse: together(begin, courses_seen, read_course),
        ReadStanding: each(begin, read_standing),
        ListCourses: each(begin, list_courses),
        PutRoster: each(begin, put_roster, in_order=by_course),
        EnrolStudent: each(begin, enrol_student, in_order=by_course),
        RemoveStudent: each(begin, remove_student, in_order=by_course),
        ReadRoster: each(begin, read_roster),
        ReadOutline: each(begin, read_outline),
        CreateSession: each(begin, create_session, in_order=by_course),
        ChangeSession: each(begin, change_session, in_order=by_session),
        ReadSession: together(begin, sessions_seen, read_session),
        ListSessions: each(begin, list_sessions),
        StartSession: each(begin, start_session, in_order=by_session),
        EndSession: each(begin, end_session, in_order=by_session),
        ReopenSession: each(begin, reopen_session, in_order=by_session),
        CancelSession: each(begin, cancel_session, in_order=by_session),
        ExplainNoRoll: together(begin, sessions_seen, explain_no_roll),
        RollOpened: roll_opened(begin),
        RollClosed: roll_closed(begin),
    }
