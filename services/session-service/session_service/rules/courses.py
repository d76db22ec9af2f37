"""The rules of courses: making one, changing it, putting it away. Pure."""

from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from session_service.rules.authority import check_staff
from session_service.timetable import zone_fault
from shared.errors import Refused
from shared.messages import Actor, News, PutCourse


class Course(Struct, frozen=True, kw_only=True):
    """A course as stored; `version` counts its changes, `roster_version` those of its roster."""

    id: str
    title: str
    teacher_ids: tuple[str, ...]
    time_zone: str
    archived_at: datetime | None = None
    version: int = 1
    roster_version: int = 0
    created_at: datetime
    updated_at: datetime


def found_course(course: Course | None) -> Course:
    """Raise Refused when there is no such course."""
    if course is None:
        raise Refused("course_not_found")
    return course


def put_course(course: Course | None, command: PutCourse, now: datetime) -> Course:
    """Decide what becomes of a course, or make one; the same object back when nothing changes.

    A teacher may make a course that lists them, and change one that lists them already.
    """
    check_staff(command.actor, command.teacher_ids if course is None else course.teacher_ids)
    if fault := zone_fault(command.time_zone):
        raise Refused("invalid", details=[fault])
    teacher_ids = tuple(dict.fromkeys(command.teacher_ids))
    if course is None:
        return Course(
            id=command.course_id,
            title=command.title,
            teacher_ids=teacher_ids,
            time_zone=command.time_zone,
            created_at=now,
            updated_at=now,
        )
    check_not_archived(course)
    wanted = replace(course, title=command.title, teacher_ids=teacher_ids, time_zone=command.time_zone)
    return course if wanted == course else replace(wanted, version=course.version + 1, updated_at=now)


def archive_course(course: Course, actor: Actor, now: datetime) -> Course:
    """Put a course away; one that is archived already comes back as it is. A session that is active goes on."""
    check_staff(actor, course.teacher_ids)
    if course.archived_at is not None:
        return course
    return replace(course, archived_at=now, version=course.version + 1, updated_at=now)


def check_not_archived(course: Course) -> None:
    """Raise Refused for a course that has been put away."""
    if course.archived_at is not None:
        raise Refused("conflict", "The course is archived")


def course_news(course: Course, *, has_rolls: bool) -> News:
    """Tell what attendance-service must have heard of a course: who teaches it matters once there are rolls to touch."""
    return News(course_id=course.id, course_version=course.version if has_rolls else 0)
