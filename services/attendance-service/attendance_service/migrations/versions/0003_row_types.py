"""The types of what is written many at a time: a row travels as one value of these instead of as one item in each of its
columns' arrays, which spares the writer a look at every item.

They never change, so that replicas of two versions can run side by side: a row with more columns gets a type of its own.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = "attendance"
TYPES = {
    "record_row": """session_id text, student_id text, student_name text, status text, source text, seq bigint, remarks text,
        marked_by text, marked_at timestamptz, joined_at timestamptz, joined_seq bigint, joined_status text,
        enrolled boolean""",
    "entry_row": """session_id text, seq bigint, at timestamptz, kind text, student_id text, before text, after text,
        source text, actor text, actor_name text, reason text, remarks text, command_id text""",
}


def upgrade() -> None:
    """Make them."""
    for name, columns in TYPES.items():
        op.execute(f"CREATE TYPE {SCHEMA}.{name} AS ({columns})")


def downgrade() -> None:
    """Take them away."""
    for name in TYPES:
        op.execute(f"DROP TYPE {SCHEMA}.{name}")
