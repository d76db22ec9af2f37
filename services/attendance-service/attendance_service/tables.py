"""The tables of schema `attendance`, for migrations and for reading; the SQL that uses them is in `store`."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Index, Integer, LargeBinary, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.outbox import outbox_table

SCHEMA = "attendance"
NEWEST = "entry_row"
"""What the last migration has made that the code needs: a service does not start where that is missing."""
ID = Text(collation="C")
metadata = MetaData(schema=SCHEMA)

# What session-service says of courses: who may act on their rolls now, whoever taught when a roll was opened.
courses = Table(
    "courses",
    metadata,
    Column("id", ID, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("teacher_ids", JSONB, nullable=False),
)

# The head of each roll. The versions say how far it has heard of its session: of anything, of its starts (and reopenings),
# of its ends (and cancelling), and of the roster.
rolls = Table(
    "rolls",
    metadata,
    Column("session_id", ID, primary_key=True),
    Column("course_id", ID, nullable=False),
    Column("session", JSONB, nullable=False),
    Column("status", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("absent", Integer, nullable=False),
    Column("present", Integer, nullable=False),
    Column("late", Integer, nullable=False),
    Column("excused", Integer, nullable=False),
    Column("opened_at", DateTime(timezone=True), nullable=False),
    Column("late_at", DateTime(timezone=True)),
    Column("closes_at", DateTime(timezone=True)),
    Column("cause", Text),
    Column("session_version", BigInteger, nullable=False),
    Column("started_version", BigInteger, nullable=False),
    Column("ended_version", BigInteger, nullable=False),
    Column("roster_version", BigInteger, nullable=False),
    # When it last began to take what it had refused before (docs/decisions/0011).
    Column("renewed_at", DateTime(timezone=True), nullable=False),
    Index("rolls_course_id", "course_id"),
)

# No index on seq: a roll is one range of the key, and updates stay heap-only. The other index is for one's own records.
records = Table(
    "records",
    metadata,
    Column("session_id", ID, primary_key=True),
    Column("student_id", ID, primary_key=True),
    Column("student_name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("remarks", Text),
    Column("marked_by", Text),
    Column("marked_at", DateTime(timezone=True)),
    Column("joined_at", DateTime(timezone=True)),
    Column("joined_seq", BigInteger),
    Column("joined_status", Text),
    Column("enrolled", Boolean, nullable=False),
    Index("records_student_id", "student_id", "session_id"),
)

# Append-only: the audit trail.
history = Table(
    "history",
    metadata,
    Column("session_id", ID, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("kind", Text, nullable=False),
    Column("student_id", ID),
    Column("before", Text),
    Column("after", Text),
    Column("source", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("actor_name", Text, nullable=False),
    Column("reason", Text),
    Column("remarks", Text),
    Column("command_id", Text),
    # For what happened to one student's records, except their join, whose number the record has.
    Index(
        "history_student_id_not_joined",
        "session_id",
        "student_id",
        postgresql_where=text("student_id IS NOT NULL AND kind <> 'joined'"),
    ),
)

# The events of a roll itself (opened, closed, submitted) as they were first published, for whoever must hear them again.
milestones = Table(
    "milestones",
    metadata,
    Column("session_id", ID, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

# What each mark, bulk, clearing and submission was answered, so that a repeat is answered to the letter.
answers = Table(
    "answers",
    metadata,
    Column("session_id", ID, primary_key=True),
    Column("actor_id", ID, primary_key=True),
    Column("command_id", ID, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
)

outbox = outbox_table(metadata)
