"""The tables of schema `sessions`, for migrations and for reading; the SQL that uses them is in `store`.

Ids sort by byte (collation C): Postgres and Python then agree on the order in which rows are locked.
"""

from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from shared.outbox import outbox_table

SCHEMA = "sessions"
NEWEST = "done"
"""What the last migration has made: a service does not start where that is missing."""
metadata = MetaData(schema=SCHEMA)


def _id(name: str, *constraints: Any, **options: Any) -> Column[str]:
    return Column(name, Text(collation="C"), *constraints, nullable=False, **options)


def _time(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


courses = Table(
    "courses",
    metadata,
    _id("id", primary_key=True),
    Column("title", Text, nullable=False),
    Column("teacher_ids", ARRAY(Text(collation="C")), nullable=False),
    Column("time_zone", Text, nullable=False),
    _time("archived_at", nullable=True),
    Column("version", Integer, nullable=False),
    Column("roster_version", Integer, nullable=False),
    _time("created_at"),
    _time("updated_at"),
    # Finds the courses of one teacher.
    Index("courses_teacher_ids", "teacher_ids", postgresql_using="gin"),
)

# Who changes a course's enrolments has locked the course's row.
enrolments = Table(
    "enrolments",
    metadata,
    _id("course_id", ForeignKey("courses.id"), primary_key=True),
    _id("student_id", primary_key=True),
    Column("name", Text, nullable=False),
    Column("email", Text),
    Column("roll_number", Text),
    # Finds the courses of one student.
    Index("enrolments_student_id", "student_id"),
)

# `started_*`, `reopened_*` and `ended_*` outlive every later change: an event that is repeated says what it said at first.
# `turn_version` is the newest of theirs, `roll_version` the newest version that the roll has reported.
sessions = Table(
    "sessions",
    metadata,
    _id("id", primary_key=True),
    _id("course_id", ForeignKey("courses.id")),
    Column("title", Text, nullable=False),
    Column("description", Text),
    Column("status", Text, nullable=False),
    Column("date", Date, nullable=False),
    Column("start_time", Text, nullable=False),
    Column("end_time", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    _time("starts_at"),
    _time("ends_at"),
    Column("meeting_link", Text),
    Column("check_in", JSONB, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_by_id", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("fingerprint", Text, nullable=False),
    _time("started_at", nullable=True),
    Column("started_version", Integer),
    Column("started_by", Text),
    Column("started_by_id", Text),
    _time("reopened_at", nullable=True),
    Column("reopened_version", Integer),
    Column("reopened_by", Text),
    Column("reopened_by_id", Text),
    Column("reopened_reason", Text),
    _time("ended_at", nullable=True),
    Column("ended_version", Integer),
    Column("ended_by", Text),
    Column("ended_by_id", Text),
    Column("ended_cause", Text),
    Column("turn_version", Integer, nullable=False, server_default=text("0")),
    Column("roll_version", Integer, nullable=False, server_default=text("0")),
    _time("repeated_at", nullable=True),
    _time("created_at"),
    _time("updated_at"),
    UniqueConstraint("created_by_id", "idempotency_key", name="sessions_idempotency_key"),
    CheckConstraint("status IN ('scheduled', 'active', 'completed', 'cancelled')", name="sessions_status"),
    CheckConstraint("starts_at < ends_at", name="sessions_last"),
    # Lists a course's sessions, newest first.
    Index("sessions_course_id", "course_id", "starts_at", "id"),
    # Lists all sessions, newest first.
    Index("sessions_starts_at", "starts_at", "id"),
    # What the roll has not reported yet; a handful of rows, however many sessions there are.
    Index("sessions_unreported", "id", postgresql_where=text("turn_version > roll_version")),
    # Finds those that are to end by themselves.
    Index("sessions_active", "ends_at", postgresql_where=text("status = 'active'")),
)

# Which commands were done on a session, of what kind: sent again, they change nothing, whatever was done since.
done = Table(
    "done",
    metadata,
    _id("session_id", ForeignKey("sessions.id"), primary_key=True),
    _id("actor_id", primary_key=True),
    _id("command_id", primary_key=True),
    Column("kind", Text, nullable=False),
)

outbox = outbox_table(metadata)
