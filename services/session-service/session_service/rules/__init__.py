"""The rules of courses and sessions, pure: who may do what, and what a command makes of a course or session.

Nothing here does I/O or reads a clock. A rule takes things as they stand and returns what becomes of them, or
raises `Refused` with a code of the contract; it has decided before anything is written.
"""

from session_service.rules.authority import check_reader, check_staff, check_staff_reader, reads_everything
from session_service.rules.courses import (
    Course,
    archive_course,
    check_not_archived,
    course_news,
    found_course,
    put_course,
)
from session_service.rules.rosters import (
    Roster,
    RosterChange,
    compare_rosters,
    enrol_student,
    remove_student,
    roster_news,
)
from session_service.rules.sessions import (
    End,
    Reopening,
    Session,
    Turn,
    change_session,
    create_session,
    created_before,
    explain_no_roll,
    found_session,
    session_news,
    with_new_roster,
)
from session_service.rules.turns import (
    cancel_session,
    check_not_refused_before,
    closing_time,
    done_before,
    end_automatically,
    end_by_submission,
    end_session,
    reopen_session,
    start_session,
)

__all__ = [
    "Course",
    "End",
    "Reopening",
    "Roster",
    "RosterChange",
    "Session",
    "Turn",
    "archive_course",
    "cancel_session",
    "change_session",
    "check_not_archived",
    "check_not_refused_before",
    "check_reader",
    "check_staff",
    "check_staff_reader",
    "closing_time",
    "compare_rosters",
    "course_news",
    "create_session",
    "created_before",
    "done_before",
    "end_automatically",
    "end_by_submission",
    "end_session",
    "enrol_student",
    "explain_no_roll",
    "found_course",
    "found_session",
    "put_course",
    "reads_everything",
    "remove_student",
    "reopen_session",
    "roster_news",
    "session_news",
    "start_session",
    "with_new_roster",
]
