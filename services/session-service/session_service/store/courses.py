"""The SQL of courses and their rosters. A roster is read or written in one round trip, however long it is."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec import structs
from sqlalchemy import Row, text

from session_service.rules import Course, Roster, RosterChange
from session_service.store.queries import Asked, Queries
from shared.messages import Enrolled, Student

_COURSE = """c.id, c.title, c.teacher_ids, c.time_zone, c.archived_at, c.version, c.roster_version,
    c.created_at, c.updated_at"""
# The courses where somebody is enrolled or which, being a teacher, they teach. :teacher is NULL for who is
# none, and NULL is in no array.
OWN_COURSES = """(SELECT course_id FROM sessions.enrolments WHERE student_id = :actor
    UNION SELECT id FROM sessions.courses WHERE teacher_ids @> ARRAY[CAST(:teacher AS text)])"""


# A course, kept from changing (its roster too) until the commit. Foreign keys to it are not held up.
_LOCK = text(f"SELECT {_COURSE} FROM sessions.courses AS c WHERE id = :id FOR NO KEY UPDATE")
# The same for the course of a session, which never changes.
_LOCK_OF = text(
    f"""SELECT {_COURSE} FROM sessions.courses AS c
    WHERE id = (SELECT course_id FROM sessions.sessions WHERE id = :session_id) FOR NO KEY UPDATE"""
)
# For each (course, actor) asked about, in that order: the course, and whether the actor is enrolled.
_SEEN = text(
    f"""SELECT {_COURSE}, EXISTS (SELECT FROM sessions.enrolments AS e
        WHERE e.course_id = asked.course_id AND e.student_id = asked.actor_id) AS enrolled
    FROM unnest(CAST(:courses AS text[]), CAST(:actors AS text[]))
        WITH ORDINALITY AS asked (course_id, actor_id, n)
    LEFT JOIN sessions.courses AS c ON c.id = asked.course_id ORDER BY asked.n"""
)
# A course, and which of these students are enrolled in it. One statement, so that the versions are those of both.
_STANDING = text(
    f"""SELECT {_COURSE}, ARRAY(SELECT e.student_id FROM sessions.enrolments AS e
        WHERE e.course_id = c.id AND e.student_id = ANY(CAST(:students AS text[]))) AS enrolled
    FROM sessions.courses AS c WHERE c.id = :id"""
)
# A new course; nothing when another replica has made it, even in a transaction that is just committing.
_ADD = text(
    """INSERT INTO sessions.courses
        (id, title, teacher_ids, time_zone, archived_at, version, roster_version, created_at, updated_at)
    VALUES (:id, :title, CAST(:teacher_ids AS text[]), :time_zone, :archived_at, :version, :roster_version,
        :created_at, :updated_at)
    ON CONFLICT (id) DO NOTHING RETURNING id"""
)
_SAVE = text(
    """UPDATE sessions.courses SET title = :title, teacher_ids = CAST(:teacher_ids AS text[]),
        time_zone = :time_zone, archived_at = :archived_at, version = :version, updated_at = :updated_at
    WHERE id = :id"""
)
# A page of all courses, and of one's own, without those that have been put away.
_ALL = text(
    f"""SELECT {_COURSE} FROM sessions.courses AS c WHERE archived_at IS NULL AND id > :after
    ORDER BY id LIMIT CAST(:limit AS int)"""
)
_OWN_PAGE = text(
    f"""SELECT {_COURSE} FROM sessions.courses AS c
    WHERE id IN {OWN_COURSES} AND archived_at IS NULL AND id > :after
    ORDER BY id LIMIT CAST(:limit AS int)"""
)

# A page of a roster.
_ROSTER = text(
    """SELECT student_id, name, email, roll_number FROM sessions.enrolments
    WHERE course_id = :course_id AND student_id > :after ORDER BY student_id LIMIT CAST(:limit AS int)"""
)
# What a roster says of one student.
_STUDENT = text(
    """SELECT student_id, name, email, roll_number FROM sessions.enrolments
    WHERE course_id = :course_id AND student_id = :student_id"""
)
# Who is enrolled in these courses, as events carry them. One statement, so that the version is that of the roster.
_ENROLLED = text(
    """SELECT c.id, c.roster_version, e.student_id, e.name
    FROM sessions.courses AS c LEFT JOIN sessions.enrolments AS e ON e.course_id = c.id
    WHERE c.id = ANY(CAST(:courses AS text[])) ORDER BY c.id, e.student_id"""
)
# Writes what changed on a roster and counts the change, in one round trip. An upsert, because UPDATE … FROM
# unnest falls into a bad plan on freshly filled tables.
_CHANGE_ROSTER = text(
    """WITH gone AS (DELETE FROM sessions.enrolments
        WHERE course_id = :course_id AND student_id = ANY(CAST(:removed AS text[]))),
    counted AS (UPDATE sessions.courses SET roster_version = roster_version + 1 WHERE id = :course_id)
    INSERT INTO sessions.enrolments (course_id, student_id, name, email, roll_number)
    SELECT :course_id, * FROM unnest(CAST(:student_ids AS text[]), CAST(:names AS text[]),
        CAST(:emails AS text[]), CAST(:roll_numbers AS text[]))
    ON CONFLICT (course_id, student_id)
    DO UPDATE SET name = EXCLUDED.name, email = EXCLUDED.email, roll_number = EXCLUDED.roll_number"""
)


class Courses(Queries):
    """Courses and rosters, in one transaction."""

    async def lock(self, course_id: str) -> Course | None:
        """Read a course and keep it and its roster from changing until the commit."""
        row = await self._one(_LOCK, id=course_id)
        return None if row is None else _course(row)

    async def lock_of(self, session_id: str) -> Course | None:
        """Read the course of a session and keep it and its roster from changing until the commit."""
        row = await self._one(_LOCK_OF, session_id=session_id)
        return None if row is None else _course(row)

    async def seen(self, asked: Asked) -> list[tuple[Course | None, bool]]:
        """Read each course asked about, in that order, and whether the one who asks is enrolled in it."""
        courses, actors = zip(*asked, strict=True)
        rows = await self._all(_SEEN, courses=list(courses), actors=list(actors))
        return [(None if row.id is None else _course(row), row.enrolled) for row in rows]

    async def standing(self, course_id: str, student_ids: Collection[str]) -> tuple[Course | None, Sequence[str]]:
        """Read a course, and which of these students are enrolled in it."""
        row = await self._one(_STANDING, id=course_id, students=list(student_ids))
        return (None, ()) if row is None else (_course(row), row.enrolled)

    async def add(self, course: Course) -> bool:
        """Write a new course; False, and nothing written, when somebody else has just made it."""
        return await self._one(_ADD, **_course_columns(course)) is not None

    async def save(self, course: Course) -> None:
        """Write a course that changed."""
        columns = _course_columns(course)
        del columns["created_at"], columns["roster_version"]
        await self._do(_SAVE, **columns)

    async def all(self, after: str | None, limit: int) -> list[Course]:
        """Read a page of all courses, by id."""
        return [_course(row) for row in await self._all(_ALL, after=after or "", limit=limit)]

    async def own(self, actor: str, teacher: str | None, after: str | None, limit: int) -> list[Course]:
        """Read a page of the courses where `actor` is enrolled, or which `teacher` teaches, by id."""
        rows = await self._all(_OWN_PAGE, actor=actor, teacher=teacher, after=after or "", limit=limit)
        return [_course(row) for row in rows]

    async def roster(self, course_id: str, after: str | None = None, limit: int | None = None) -> list[Student]:
        """Read a roster, or a page of it, by student id."""
        rows = await self._all(_ROSTER, course_id=course_id, after=after or "", limit=limit)
        return [Student(**row._mapping) for row in rows]

    async def student(self, course_id: str, student_id: str) -> Student | None:
        """Read what a course's roster says of one student, None when they are not on it."""
        row = await self._one(_STUDENT, course_id=course_id, student_id=student_id)
        return None if row is None else Student(**row._mapping)

    async def enrolled(self, course_ids: Collection[str]) -> Mapping[str, Roster]:
        """Read who is enrolled in each of these courses, as events carry them; each roster at one version."""
        rosters: dict[str, tuple[int, list[Enrolled]]] = {}
        for row in await self._all(_ENROLLED, courses=list(course_ids)):
            _, students = rosters.setdefault(row.id, (row.roster_version, []))
            if row.student_id is not None:
                students.append(Enrolled(row.student_id, row.name))
        return {id: Roster(version=version, students=tuple(students)) for id, (version, students) in rosters.items()}

    async def change_roster(self, course: Course, change: RosterChange) -> Course:
        """Write what changed on a roster, in one round trip; the course must be locked, and comes back counted on."""
        written = change.added + change.updated
        await self._do(
            _CHANGE_ROSTER,
            course_id=course.id,
            removed=list(change.removed),
            student_ids=[student.student_id for student in written],
            names=[student.name for student in written],
            emails=[student.email for student in written],
            roll_numbers=[student.roll_number for student in written],
        )
        return structs.replace(course, roster_version=course.roster_version + 1)


def _course(row: Row[Any]) -> Course:
    return Course(
        id=row.id,
        title=row.title,
        teacher_ids=tuple(row.teacher_ids),
        time_zone=row.time_zone,
        archived_at=row.archived_at,
        version=row.version,
        roster_version=row.roster_version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _course_columns(course: Course) -> dict[str, Any]:
    return {**structs.asdict(course), "teacher_ids": list(course.teacher_ids)}
