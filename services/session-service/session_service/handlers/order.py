"""In which order a batch is done, which is the order in which everybody locks: courses by id, then sessions by id."""

from collections.abc import Sequence
from typing import TypeVar

from session_service.store import DoneOnce, Unit
from shared.messages import ArchiveCourse, CreateSession, EnrolStudent, PutCourse, PutRoster, RemoveStudent

OfCourse = TypeVar("OfCourse", PutCourse, ArchiveCourse, PutRoster, EnrolStudent, RemoveStudent, CreateSession)
OfSession = TypeVar("OfSession", bound=DoneOnce)


async def by_course(unit: Unit, commands: Sequence[OfCourse]) -> Sequence[OfCourse]:
    """Sort by course; what concerns one course stays as it came."""
    return sorted(commands, key=lambda command: command.course_id)


async def by_session(unit: Unit, commands: Sequence[OfSession]) -> Sequence[OfSession]:
    """Sort by course and session; what concerns one session stays as it came."""
    courses = await unit.sessions.courses_of({command.session_id for command in commands})
    return sorted(commands, key=lambda command: (courses.get(command.session_id, ""), command.session_id))
