"""The rules of rosters: what a new one, or one student more or less, makes of the old. Pure."""

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from session_service.rules.courses import Course
from session_service.rules.sessions import Session
from shared.errors import Refused
from shared.messages import Enrolled, News, Student


class Roster(Struct, frozen=True, kw_only=True):
    """Who was enrolled in a course at `version`, as events carry them."""

    version: int = 0
    students: tuple[Enrolled, ...] = ()


class RosterChange(Struct, frozen=True, kw_only=True):
    """What a new roster makes of the old one."""

    added: tuple[Student, ...] = ()
    updated: tuple[Student, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.updated or self.removed)


def compare_rosters(old: Sequence[Student], new: Sequence[Student]) -> RosterChange:
    """Decide what a new roster adds, updates and removes; raise Refused when it names a student twice."""
    before: Mapping[str, Student] = {student.student_id: student for student in old}
    after: dict[str, Student] = {}
    faults = []
    for student in new:
        if student.student_id in after:
            faults.append({"field": "student_id", "message": f"{student.student_id} is on the roster twice"})
        after[student.student_id] = student
    if faults:
        raise Refused("invalid", details=faults)
    return RosterChange(
        added=tuple(student for id, student in after.items() if id not in before),
        updated=tuple(student for id, student in after.items() if id in before and student != before[id]),
        removed=tuple(id for id in before if id not in after),
    )


def enrol_student(before: Student | None, student: Student) -> RosterChange:
    """Decide what enrolling a student changes, who may be there `before`: what is not said of them now stays as it was."""
    if before is None:
        return RosterChange(added=(student,))
    wanted = replace(
        before,
        name=student.name or before.name,
        email=student.email or before.email,
        roll_number=student.roll_number or before.roll_number,
    )
    return RosterChange() if wanted == before else RosterChange(updated=(wanted,))


def remove_student(before: Student | None) -> RosterChange:
    """Decide what taking a student away changes; nothing, where they are not on the roster."""
    return RosterChange() if before is None else RosterChange(removed=(before.student_id,))


def roster_news(course: Course, active: Sequence[Session]) -> News:
    """Tell what attendance-service must have heard of a roster: with no session active, nothing."""
    return News(
        course_id=course.id,
        roster_version=course.roster_version if active else 0,
        session_versions={session.id: session.version for session in active},
    )
