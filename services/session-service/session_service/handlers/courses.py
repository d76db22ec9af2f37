"""What is done with courses."""

from collections.abc import Sequence

from session_service import rules
from session_service.batches import Work
from session_service.handlers.pages import as_teacher, page
from session_service.rules import Course
from session_service.store import Unit
from session_service.views import course_changed, view_course
from shared.errors import Refused
from shared.messages import (
    ArchiveCourse,
    CoursePage,
    CourseStored,
    ListCourses,
    News,
    PutCourse,
    ReadCourse,
    ReadStanding,
    Standing,
)
from shared.messages import Course as CourseView


async def put_course(work: Work, command: PutCourse) -> CourseStored:
    """Make or change a course. A redelivery after the making finds it made, and answers `created` False."""
    courses = work.unit.courses
    course = await courses.lock(command.course_id)
    if course is None:
        made = rules.put_course(None, command, work.now)
        if await courses.add(made):
            work.emit(course_changed(made), made.id)
            return CourseStored(course=view_course(made), created=True, news=News(course_id=made.id))
        course = rules.found_course(await courses.lock(command.course_id))
    changed = rules.put_course(course, command, work.now)
    if changed != course:
        await courses.save(changed)
    news = rules.course_news(changed, has_rolls=await work.unit.sessions.any_started(changed.id))
    # The asker will wait until attendance-service knows this version: should it have been lost, it is told again.
    if changed != course or news.course_version:
        work.emit(course_changed(changed), changed.id)
    return CourseStored(course=view_course(changed), created=False, news=news)


async def archive_course(work: Work, command: ArchiveCourse) -> CourseStored:
    """Put a course away, or find it put away; its rolls go on, so there is nothing to wait for."""
    courses = work.unit.courses
    course = rules.found_course(await courses.lock(command.course_id))
    archived = rules.archive_course(course, command.actor, work.now)
    if archived != course:
        await courses.save(archived)
        work.emit(course_changed(archived), archived.id)
    return CourseStored(course=view_course(archived), created=False, news=News(course_id=archived.id))


def read_course(command: ReadCourse, course: Course | None, enrolled: bool) -> CourseView:
    """Show a course, also one that was put away, to its staff and students."""
    course = rules.found_course(course)
    rules.check_reader(command.actor, course.teacher_ids, enrolled=enrolled)
    return view_course(course)


async def read_standing(work: Work, command: ReadStanding) -> Standing:
    """Say who teaches a course and which of these students are enrolled, to those who read everything."""
    if not rules.reads_everything(command.actor):
        raise Refused("forbidden")
    course, enrolled = await work.unit.courses.standing(command.course_id, command.student_ids)
    course = rules.found_course(course)
    return Standing(
        teacher_ids=tuple(course.teacher_ids),
        enrolled=tuple(enrolled),
        version=course.version,
        roster_version=course.roster_version,
    )


async def list_courses(work: Work, command: ListCourses) -> CoursePage:
    """List the courses that are the actor's own, to admins and services all, but none that was put away."""
    actor, courses = command.actor, work.unit.courses
    if rules.reads_everything(actor):
        found = await courses.all(command.cursor, command.limit + 1)
    else:
        found = await courses.own(actor.id, as_teacher(actor), command.cursor, command.limit + 1)
    items, cursor = page(found, command.limit, lambda course: course.id)
    return CoursePage(items=tuple(map(view_course, items)), next_cursor=cursor)


async def courses_seen(unit: Unit, commands: Sequence[ReadCourse]) -> list[tuple[Course | None, bool]]:
    """Read the courses asked about, and whether each asker is enrolled."""
    return await unit.courses.seen([(command.course_id, command.actor.id) for command in commands])
