"""A join's line of history is found by its number, which the student's record has, and so needs no index by student.

That index is for what else happened to a record. With joins in it, it was a fifth of what Postgres did for each of them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = "attendance"
BEFORE, AFTER = "history_student_id", "history_student_id_not_joined"


def upgrade() -> None:
    """Index all lines about a student but their join."""
    index(AFTER, "student_id IS NOT NULL AND kind <> 'joined'")
    op.drop_index(BEFORE, "history", schema=SCHEMA)


def downgrade() -> None:
    """Index all lines about a student."""
    index(BEFORE, "student_id IS NOT NULL")
    op.drop_index(AFTER, "history", schema=SCHEMA)


def index(name: str, condition: str) -> None:
    """Make an index by session and student."""
    columns = ["session_id", "student_id"]
    op.create_index(name, "history", columns, schema=SCHEMA, postgresql_where=sa.text(condition))
