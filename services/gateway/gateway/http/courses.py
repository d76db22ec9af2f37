"""Courses and their rosters over HTTP."""

from aiohttp import web

from gateway.answers import CourseList, RosterCounts, RosterList
from gateway.http.routes import Asked, Routes, as_json, operation
from gateway.openapi import JSON, Answer, Takes, from_json, from_query
from gateway.payloads import CoursePayload, StudentBody
from gateway.queries import Nothing, PageQuery
from gateway.rosters import MAX_ROSTER_BYTES, StudentPayload, read_roster
from gateway.spreadsheets import CSV_TYPE
from shared.messages import Course, RosterStored, Student

_CHANGES = ("course_not_found", "conflict")
_ROSTER = Takes[tuple[Student, ...]](
    lambda _, body, content_type: read_roster(body, content_type),
    bodies={JSON: list[StudentPayload], CSV_TYPE: None},
    required=True,
    max_bytes=MAX_ROSTER_BYTES,
)
_COUNTS = Answer("What changed", RosterCounts)


class Courses(Routes):
    """The routes below /courses, less the summary."""

    tag = "courses"

    @operation("GET", "/courses", from_query(PageQuery), Answer("One page", CourseList))
    async def list_courses(self, asked: Asked[PageQuery]) -> web.Response:
        """List one's own courses; to an admin or a service, all."""
        return as_json(await self._requests.list_courses(asked.actor, asked.said.limit, asked.said.cursor))

    @operation(
        "PUT",
        "/courses/{course_id}",
        from_json(CoursePayload),
        {200: Answer("Changed", Course), 201: Answer("Made", Course)},
        refusals=("conflict",),
    )
    async def put_course(self, asked: Asked[CoursePayload]) -> web.Response:
        """Make a course, or change it. A teacher may make one that lists them."""
        stored = await self._requests.put_course(asked.actor, asked.course_id, asked.said)
        return as_json(stored.course, 201 if stored.created else 200)

    @operation("GET", "/courses/{course_id}", from_query(Nothing), Answer("The course", Course), refusals=("course_not_found",))
    async def read_course(self, asked: Asked[Nothing]) -> web.Response:
        """Read a course."""
        return as_json(await self._requests.read_course(asked.actor, asked.course_id))

    @operation("DELETE", "/courses/{course_id}", from_query(Nothing), Answer("The course", Course), refusals=_CHANGES)
    async def archive_course(self, asked: Asked[Nothing]) -> web.Response:
        """Archive a course: it takes no more changes and no more sessions."""
        return as_json((await self._requests.archive_course(asked.actor, asked.course_id)).course)

    @operation(
        "GET",
        "/courses/{course_id}/roster",
        from_query(PageQuery),
        Answer("One page", RosterList),
        refusals=("course_not_found",),
    )
    async def read_roster(self, asked: Asked[PageQuery]) -> web.Response:
        """Read a course's roster."""
        page = await self._requests.read_roster(asked.actor, asked.course_id, asked.said.limit, asked.said.cursor)
        return as_json(page)

    @operation("PUT", "/courses/{course_id}/roster", _ROSTER, _COUNTS, refusals=_CHANGES, roles=("teacher", "admin"))
    async def put_roster(self, asked: Asked[tuple[Student, ...]]) -> web.Response:
        """Replace a course's whole roster, with JSON or with CSV that has the columns student_id and name."""
        return _counts(await self._requests.put_roster(asked.actor, asked.course_id, asked.said))

    @operation(
        "POST",
        "/courses/{course_id}/roster/{student_id}",
        from_json(StudentBody),
        {200: _COUNTS, 201: Answer("Added", RosterCounts)},
        refusals=_CHANGES,
    )
    async def enrol(self, asked: Asked[StudentBody]) -> web.Response:
        """Put one student on a course's roster, or change what it says of them; open rolls have them at once."""
        stored = await self._requests.enrol(asked.actor, asked.course_id, asked.student_id, asked.said)
        return _counts(stored, 201 if stored.added else 200)

    @operation("DELETE", "/courses/{course_id}/roster/{student_id}", from_query(Nothing), _COUNTS, refusals=_CHANGES)
    async def remove(self, asked: Asked[Nothing]) -> web.Response:
        """Take one student off a course's roster. Their records stay."""
        return _counts(await self._requests.remove(asked.actor, asked.course_id, asked.student_id))


def _counts(stored: RosterStored, status: int = 200) -> web.Response:
    return as_json(RosterCounts(added=stored.added, updated=stored.updated, removed=stored.removed), status)
