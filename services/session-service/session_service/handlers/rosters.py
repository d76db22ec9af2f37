"""What is done with rosters. While sessions of the course are active, each of them is told of every change."""

from session_service import rules
from session_service.batches import Work
from session_service.handlers.pages import page
from session_service.rules import Course, RosterChange
from session_service.views import session_changed, view_course
from shared.messages import (
    Actor,
    EnrolStudent,
    Outline,
    PutRoster,
    ReadOutline,
    ReadRoster,
    RemoveStudent,
    RosterPage,
    RosterStored,
)


async def put_roster(work: Work, command: PutRoster) -> RosterStored:
    """Replace a roster by what changed on it. A redelivery finds nothing changed, and answers zeros."""
    course = await _locked_course(work, command)
    change = rules.compare_rosters(await work.unit.courses.roster(course.id), command.students)
    return await _store(work, course, change, command.actor)


async def enrol_student(work: Work, command: EnrolStudent) -> RosterStored:
    """Put one student on a roster, or change what it says of them. A redelivery answers zeros."""
    course = await _locked_course(work, command)
    before = await work.unit.courses.student(course.id, command.student.student_id)
    return await _store(work, course, rules.enrol_student(before, command.student), command.actor)


async def remove_student(work: Work, command: RemoveStudent) -> RosterStored:
    """Take one student off a roster. A redelivery answers zeros."""
    course = await _locked_course(work, command)
    before = await work.unit.courses.student(course.id, command.student_id)
    return await _store(work, course, rules.remove_student(before), command.actor)


async def read_roster(work: Work, command: ReadRoster) -> RosterPage:
    """Show a page of a roster to the course's staff."""
    course = await _read_by_staff(work, command)
    found = await work.unit.courses.roster(course.id, command.cursor, command.limit + 1)
    items, cursor = page(found, command.limit, lambda student: student.student_id)
    return RosterPage(items=tuple(items), next_cursor=cursor)


async def read_outline(work: Work, command: ReadOutline) -> Outline:
    """Show the course's staff its whole roster, and how many of its sessions are not over."""
    course = await _read_by_staff(work, command)
    roster = await work.unit.courses.roster(course.id)
    remaining = await work.unit.sessions.remaining(course.id)
    return Outline(course=view_course(course), roster=tuple(roster), remaining_sessions=remaining)


async def _locked_course(work: Work, command: PutRoster | EnrolStudent | RemoveStudent) -> Course:
    course = rules.found_course(await work.unit.courses.lock(command.course_id))
    rules.check_staff(command.actor, course.teacher_ids)
    rules.check_not_archived(course)
    return course


async def _read_by_staff(work: Work, command: ReadRoster | ReadOutline) -> Course:
    [(course, _)] = await work.unit.courses.seen([(command.course_id, command.actor.id)])
    course = rules.found_course(course)
    rules.check_staff_reader(command.actor, course.teacher_ids)
    return course


async def _store(work: Work, course: Course, change: RosterChange, by: Actor) -> RosterStored:
    """Write a change, and tell the sessions that are active; their course is locked, so that none starts meanwhile.

    What changes nothing is answered with the versions as they are: whoever sends a command again waits for them too.
    """
    courses, sessions = work.unit.courses, work.unit.sessions
    active = await sessions.lock_active(course.id)
    if change:
        course = await courses.change_roster(course, change)
    if change and active:
        roster = (await courses.enrolled([course.id]))[course.id]
        active = [rules.with_new_roster(session, work.now) for session in active]
        for session in active:
            await sessions.save(session)
            work.emit(session_changed(session, by, roster, change.removed), course.id)
    return RosterStored(
        added=len(change.added),
        updated=len(change.updated),
        removed=len(change.removed),
        news=rules.roster_news(course, active),
    )
