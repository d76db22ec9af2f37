"""The whole life of a roll: courses, answers to commands, milestones, and how far each roll has heard of its session."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "attendance"
ID = sa.Text(collation="C")
TIME = sa.DateTime(timezone=True)
# Until now a session had three versions: 1 scheduled, 2 started, 3 ended.
VERSIONS = {
    "session_version": "CASE status WHEN 'open' THEN 2 ELSE 3 END",
    "started_version": "2",
    "ended_version": "CASE status WHEN 'open' THEN 0 ELSE 3 END",
    "roster_version": "0",
}


def upgrade() -> None:
    """Make the new tables and columns; the events that opened and closed each roll move to the milestones."""
    op.create_table(
        "courses",
        sa.Column("id", ID, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("teacher_ids", postgresql.JSONB, nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "milestones",
        sa.Column("session_id", ID, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "answers",
        sa.Column("session_id", ID, primary_key=True),
        sa.Column("actor_id", ID, primary_key=True),
        sa.Column("command_id", ID, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("at", TIME, nullable=False),
        schema=SCHEMA,
    )
    for kind, column in (("opened", "opening"), ("closed", "closing")):
        op.execute(
            f"""INSERT INTO {SCHEMA}.milestones (session_id, seq, body) SELECT session_id, h.seq, r.{column}
            FROM {SCHEMA}.rolls AS r JOIN {SCHEMA}.history AS h USING (session_id)
            WHERE h.kind = '{kind}' AND r.{column} IS NOT NULL"""
        )
        op.drop_column("rolls", column, schema=SCHEMA)
    for name in VERSIONS:
        op.add_column("rolls", sa.Column(name, sa.BigInteger), schema=SCHEMA)
    op.execute(f"UPDATE {SCHEMA}.rolls SET {', '.join(f'{name} = {known}' for name, known in VERSIONS.items())}")
    for name in VERSIONS:
        op.alter_column("rolls", name, nullable=False, schema=SCHEMA)
    op.add_column("rolls", sa.Column("renewed_at", TIME), schema=SCHEMA)
    op.execute(f"UPDATE {SCHEMA}.rolls SET renewed_at = opened_at")
    op.alter_column("rolls", "renewed_at", nullable=False, schema=SCHEMA)
    # With a default the rows need no rewriting; from now on the service always says.
    op.add_column("records", sa.Column("enrolled", sa.Boolean, nullable=False, server_default=sa.true()), schema=SCHEMA)
    op.alter_column("records", "enrolled", server_default=None, schema=SCHEMA)
    op.create_index("records_student_id", "records", ["student_id", "session_id"], schema=SCHEMA)
    op.create_index("rolls_course_id", "rolls", ["course_id"], schema=SCHEMA)
    op.create_index(
        "history_student_id",
        "history",
        ["session_id", "student_id"],
        schema=SCHEMA,
        postgresql_where=sa.text("student_id IS NOT NULL"),
    )


def downgrade() -> None:
    """Take it back. Of the milestones only the first opening and the last closing are kept."""
    for name, column in (
        ("history_student_id", "history"),
        ("rolls_course_id", "rolls"),
        ("records_student_id", "records"),
    ):
        op.drop_index(name, column, schema=SCHEMA)
    op.drop_column("records", "enrolled", schema=SCHEMA)
    op.drop_column("rolls", "renewed_at", schema=SCHEMA)
    for name in VERSIONS:
        op.drop_column("rolls", name, schema=SCHEMA)
    for column in ("opening", "closing"):
        op.add_column("rolls", sa.Column(column, sa.LargeBinary), schema=SCHEMA)
    op.execute(
        f"""UPDATE {SCHEMA}.rolls AS r SET opening =
            (SELECT body FROM {SCHEMA}.milestones AS m WHERE m.session_id = r.session_id AND m.seq = 1)"""
    )
    op.execute(
        f"""UPDATE {SCHEMA}.rolls AS r SET closing =
            (SELECT m.body FROM {SCHEMA}.milestones AS m JOIN {SCHEMA}.history AS h USING (session_id, seq)
            WHERE m.session_id = r.session_id AND h.kind IN ('closed', 'cancelled') ORDER BY m.seq DESC LIMIT 1)
        WHERE r.status <> 'open'"""
    )
    op.alter_column("rolls", "opening", nullable=False, schema=SCHEMA)
    for name in ("answers", "milestones", "courses"):
        op.drop_table(name, schema=SCHEMA)
