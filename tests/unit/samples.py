"""One of each shape that travels, for tests to which its values do not matter."""

from shared.messages import Change, CheckIn, Record, RollRead, Session, Statistics

AT = "2026-11-24T09:00:00.000Z"

SESSION = Session(
    id="5e55",
    course_id="c1",
    title="Rings",
    topic="Rings",
    description=None,
    status="active",
    date="1795478400000",
    start_time="09:00",
    end_time="10:30",
    time_zone="UTC",
    starts_at=AT,
    ends_at="2026-11-24T10:30:00.000Z",
    meeting_link=None,
    teacher_ids=("ada",),
    check_in=CheckIn(),
    started_at=AT,
    ended_at=None,
    created_at=AT,
    updated_at=AT,
)
RECORD = Record(
    session_id="5e55",
    student_id="ann",
    student_name="Ann",
    status="late",
    remarks="=1+1",
    source="teacher",
    marked_by="ada",
    marked_at=AT,
    joined_at=None,
    seq=7,
)
STATISTICS = Statistics(total_students=1, present_count=0, absent_count=0, late_count=1, excused_count=0, attendance_rate=100.0)
ROLL = RollRead(session=SESSION, records=(RECORD,), statistics=STATISTICS, seq=7)
CHANGE = Change(
    seq=7,
    at=AT,
    kind="marked",
    student_id="ann",
    before="absent",
    after="late",
    source="teacher",
    actor="ada",
    actor_name="Ada",
    reason=None,
    remarks="=1+1",
    command_id="k1",
    student_name="Ann",
    joined_at=None,
)
