"""Joins on top of what many lectures have left in Postgres, on tables that nobody has analysed, and on some that were."""

import asyncio
from collections.abc import Iterator

from bench.plan import Run
from bench.round import play, usual
from bench.rows import Row
from bench.stage import MIGRATED, Stage, execute
from tests.system.rig import unique

STUDENTS = 500

# Lectures of the past, with every record and its history. Autovacuum would analyse the tables in the middle of a round.
FILL = """
ALTER TABLE attendance.rolls SET (autovacuum_enabled = false);
ALTER TABLE attendance.records SET (autovacuum_enabled = false);
ALTER TABLE attendance.history SET (autovacuum_enabled = false);
INSERT INTO attendance.rolls (session_id, course_id, session, status, seq, absent, present, late, excused,
    opened_at, renewed_at, cause, session_version, started_version, ended_version, roster_version)
SELECT 'past-' || n, 'course-past', '{}', 'closed', 2, 0, least({students}, {records}), 0, 0,
    now() - interval '1 day', now() - interval '1 day', 'ended', 3, 2, 3, 1
FROM generate_series(1, ({records} + {students} - 1) / {students}) n;
INSERT INTO attendance.records (session_id, student_id, student_name, status, source, seq, joined_at, joined_seq,
    joined_status, enrolled)
SELECT 'past-' || 1 + n / {students}, 's' || n % {students}, 'Student ' || n % {students}, 'present', 'self',
    2 + n % {students}, now() - interval '1 day', 2 + n % {students}, 'present', true
FROM generate_series(0, {records} - 1) n;
INSERT INTO attendance.history (session_id, seq, at, kind, student_id, before, after, source, actor, actor_name)
SELECT 'past-' || 1 + n / {students}, 2 + n % {students}, now() - interval '1 day', 'joined', 's' || n % {students},
    'absent', 'present', 'self', 's' || n % {students}, 'Student ' || n % {students}
FROM generate_series(0, {records} - 1) n;
"""


def growth(run: Run) -> Iterator[Row]:
    """The same load while attendance-service works on one database after the other."""
    databases = {f"{records:,} records": filled(run.stage, records) for records in run.sizes.filled}
    [*_, (case, most)] = databases.items()
    databases[f"{case}, analysed"] = analysed(run.stage, most)
    ours = run.cast.ours()
    for _ in run.rounds():
        for case, url in databases.items():
            ours.use("attendance_service", url)
            yield Row("growth", case, ours.name, play(run, ours, usual(run.sizes)))


def filled(stage: Stage, records: int) -> str:
    """Make a database with so many records of the past; return its URL."""
    url = stage.database(unique("growth"), template=MIGRATED)
    statement = FILL.replace("{students}", str(STUDENTS)).replace("{records}", str(records))
    asyncio.run(execute(url, statement))
    return url


def analysed(stage: Stage, url: str) -> str:
    """Copy a database, and analyse the copy; return its URL."""
    copy = stage.database(unique("growth"), template=url.rpartition("/")[2])
    asyncio.run(execute(copy, "ANALYZE"))
    return copy
