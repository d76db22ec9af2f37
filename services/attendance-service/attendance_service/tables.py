"""The tables of schema `attendance`, for migrations and for reading; the SQL that uses them is in `store`."""

from sqlalchemy import BigInteger, Column, DateTime, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from shared.outbox import outbox_table

SCHEMA = "attendance"
ID = Text(collation="C")
metadata = MetaData(schema=SCHEMA)

# The head of each roll. `opening` and `closing` are the events as they were published, for whoever must hear them again.
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
    Column("opening", LargeBinary, nullable=False),
    Column("closing", LargeBinary),
)

# No index on seq: a roll is one range of the key, and updates stay heap-only.
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
)

outbox = outbox_table(metadata)
