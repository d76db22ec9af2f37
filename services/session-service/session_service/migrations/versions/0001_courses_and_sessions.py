"""Courses, enrolments, sessions, and the outbox."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "sessions"
ID = sa.Text(collation="C")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "courses",
        sa.Column("id", ID, primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("teacher_ids", postgresql.ARRAY(ID), nullable=False),
        sa.Column("time_zone", sa.Text, nullable=False),
        sa.Column("archived_at", TIME),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("roster_version", sa.Integer, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        schema=SCHEMA,
    )
    op.create_index("courses_teacher_ids", "courses", ["teacher_ids"], schema=SCHEMA, postgresql_using="gin")
    op.create_table(
        "enrolments",
        sa.Column("course_id", ID, sa.ForeignKey(f"{SCHEMA}.courses.id"), primary_key=True),
        sa.Column("student_id", ID, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("email", sa.Text),
        sa.Column("roll_number", sa.Text),
        schema=SCHEMA,
    )
    op.create_index("enrolments_student_id", "enrolments", ["student_id"], schema=SCHEMA)
    op.create_table(
        "sessions",
        sa.Column("id", ID, primary_key=True),
        sa.Column("course_id", ID, sa.ForeignKey(f"{SCHEMA}.courses.id"), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("date", sa.Date, nullable=False),
        sa.Column("start_time", sa.Text, nullable=False),
        sa.Column("end_time", sa.Text, nullable=False),
        sa.Column("time_zone", sa.Text, nullable=False),
        sa.Column("starts_at", TIME, nullable=False),
        sa.Column("ends_at", TIME, nullable=False),
        sa.Column("meeting_link", sa.Text),
        sa.Column("check_in", postgresql.JSONB, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_by_id", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("started_version", sa.Integer),
        sa.Column("started_by", sa.Text),
        sa.Column("started_by_id", sa.Text),
        sa.Column("ended_at", TIME),
        sa.Column("ended_version", sa.Integer),
        sa.Column("ended_by", sa.Text),
        sa.Column("ended_by_id", sa.Text),
        sa.Column("ended_cause", sa.Text),
        sa.Column("roll_opened_at", TIME),
        sa.Column("roll_closed_at", TIME),
        sa.Column("repeated_at", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.UniqueConstraint("created_by_id", "idempotency_key", name="sessions_idempotency_key"),
        sa.CheckConstraint("status IN ('scheduled', 'active', 'completed', 'cancelled')", name="sessions_status"),
        sa.CheckConstraint("starts_at < ends_at", name="sessions_last"),
        schema=SCHEMA,
    )
    op.create_index("sessions_course_id", "sessions", ["course_id", "starts_at", "id"], schema=SCHEMA)
    op.create_index("sessions_starts_at", "sessions", ["starts_at", "id"], schema=SCHEMA)
    op.create_index(
        "sessions_unreported",
        "sessions",
        ["id"],
        schema=SCHEMA,
        postgresql_where=sa.text(
            "status = 'active' AND roll_opened_at IS NULL OR status = 'completed' AND roll_closed_at IS NULL"
        ),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("channels", postgresql.ARRAY(sa.Text), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("reply_queue", sa.Text),
        sa.Column("correlation_id", sa.Text),
        sa.Column("created_at", TIME, nullable=False, server_default=sa.func.clock_timestamp()),
        schema=SCHEMA,
    )
    op.create_index("outbox_created_at", "outbox", ["created_at"], schema=SCHEMA)


def downgrade() -> None:
    """Drop them again."""
    for table in ("outbox", "sessions", "enrolments", "courses"):
        op.drop_table(table, schema=SCHEMA)
