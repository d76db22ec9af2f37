"""Sessions are reopened, report by version, end by themselves; commands that were done are remembered."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "sessions"
ID = sa.Text(collation="C")
TIME = sa.DateTime(timezone=True)
UNREPORTED_BEFORE = "status = 'active' AND roll_opened_at IS NULL OR status = 'completed' AND roll_closed_at IS NULL"


def upgrade() -> None:
    """Keep what awaited a report awaiting it, and what awaited none at rest."""
    for column in (
        sa.Column("reopened_at", TIME),
        sa.Column("reopened_version", sa.Integer),
        sa.Column("reopened_by", sa.Text),
        sa.Column("reopened_by_id", sa.Text),
        sa.Column("reopened_reason", sa.Text),
        sa.Column("turn_version", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("roll_version", sa.Integer, nullable=False, server_default=sa.text("0")),
    ):
        op.add_column("sessions", column, schema=SCHEMA)
    op.execute(
        f"""UPDATE {SCHEMA}.sessions SET turn_version = coalesce(ended_version, started_version),
            roll_version = CASE WHEN status = 'completed' AND roll_closed_at IS NULL
                    OR status = 'active' AND roll_opened_at IS NULL
                THEN CASE WHEN roll_opened_at IS NULL THEN 0 ELSE started_version END
                ELSE coalesce(ended_version, started_version) END
        WHERE started_version IS NOT NULL"""
    )
    op.drop_index("sessions_unreported", "sessions", schema=SCHEMA)
    op.drop_column("sessions", "roll_opened_at", schema=SCHEMA)
    op.drop_column("sessions", "roll_closed_at", schema=SCHEMA)
    op.create_index(
        "sessions_unreported",
        "sessions",
        ["id"],
        schema=SCHEMA,
        postgresql_where=sa.text("turn_version > roll_version"),
    )
    op.create_index(
        "sessions_active",
        "sessions",
        ["ends_at"],
        schema=SCHEMA,
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_table(
        "done",
        sa.Column("session_id", ID, sa.ForeignKey(f"{SCHEMA}.sessions.id"), primary_key=True),
        sa.Column("actor_id", ID, primary_key=True),
        sa.Column("command_id", ID, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        schema=SCHEMA,
    )


def downgrade() -> None:
    """Say of each roll that it was opened or closed when the session was; a reopening is forgotten."""
    op.drop_table("done", schema=SCHEMA)
    for index in ("sessions_active", "sessions_unreported"):
        op.drop_index(index, "sessions", schema=SCHEMA)
    for name in ("roll_opened_at", "roll_closed_at"):
        op.add_column("sessions", sa.Column(name, TIME), schema=SCHEMA)
    op.execute(
        f"""UPDATE {SCHEMA}.sessions SET roll_opened_at = CASE WHEN roll_version > 0 THEN started_at END,
            roll_closed_at = CASE WHEN status = 'completed' AND roll_version >= turn_version THEN ended_at END
        WHERE started_version IS NOT NULL"""
    )
    # What was ended, and then reopened, is active again: version 0001 knows no end before that.
    op.execute(
        f"""UPDATE {SCHEMA}.sessions SET ended_at = NULL, ended_version = NULL, ended_by = NULL, ended_by_id = NULL,
            ended_cause = NULL WHERE status = 'active'"""
    )
    columns = ("at", "version", "by", "by_id", "reason")
    for name in ("turn_version", "roll_version", *(f"reopened_{column}" for column in columns)):
        op.drop_column("sessions", name, schema=SCHEMA)
    op.create_index("sessions_unreported", "sessions", ["id"], schema=SCHEMA, postgresql_where=sa.text(UNREPORTED_BEFORE))
