"""Rolls, records, history, and the outbox."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "attendance"
ID = sa.Text(collation="C")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "rolls",
        sa.Column("session_id", ID, primary_key=True),
        sa.Column("course_id", ID, nullable=False),
        sa.Column("session", postgresql.JSONB, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("absent", sa.Integer, nullable=False),
        sa.Column("present", sa.Integer, nullable=False),
        sa.Column("late", sa.Integer, nullable=False),
        sa.Column("excused", sa.Integer, nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("late_at", TIME),
        sa.Column("closes_at", TIME),
        sa.Column("cause", sa.Text),
        sa.Column("opening", sa.LargeBinary, nullable=False),
        sa.Column("closing", sa.LargeBinary),
        schema=SCHEMA,
    )
    op.create_table(
        "records",
        sa.Column("session_id", ID, primary_key=True),
        sa.Column("student_id", ID, primary_key=True),
        sa.Column("student_name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("remarks", sa.Text),
        sa.Column("marked_by", sa.Text),
        sa.Column("marked_at", TIME),
        sa.Column("joined_at", TIME),
        sa.Column("joined_seq", sa.BigInteger),
        sa.Column("joined_status", sa.Text),
        schema=SCHEMA,
    )
    op.create_table(
        "history",
        sa.Column("session_id", ID, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("student_id", ID),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("actor_name", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("remarks", sa.Text),
        sa.Column("command_id", sa.Text),
        schema=SCHEMA,
    )
    # Rows change in place: room on each page keeps those updates off the index.
    op.execute(f"ALTER TABLE {SCHEMA}.records SET (fillfactor = 80)")
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
    """Drop them."""
    for name in ("outbox", "history", "records", "rolls"):
        op.drop_table(name, schema=SCHEMA)
