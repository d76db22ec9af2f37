"""attendance-service on a real Postgres: rolls are submitted, once, and amended with a reason."""

from datetime import timedelta

from shared.clock import rfc3339
from shared.errors import NO_ROLL
from shared.messages import Submission, SubmitRoll
from tests.contract.roll_talk import (
    ADA,
    ANN,
    BOB,
    NAMES,
    ROBOT,
    ROOT,
    Service,
    a,
    all_is_well,
    an_open_roll,
    cancelled,
    ended,
    lines_of,
    started,
    to_clear,
    to_join,
    to_mark,
    to_mark_all,
    value,
)

pytest_plugins = ("tests.contract.roll_fixtures",)


# Submitting


async def test_submitting_an_open_roll_closes_it_with_two_numbers_and_two_events(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    service.left.clear()
    service.now += timedelta(minutes=50)

    submission: Submission = await service.do(a(SubmitRoll, ROOT, command_id="s"))

    at = rfc3339(service.now)
    assert (submission.session_id, submission.submitted_by, submission.submitted_by_id) == ("5e55", "Root", "root")
    assert (submission.submitted_at, submission.seq, submission.statistics.present_count) == (at, 4, 1)
    closed, submitted = service.events
    assert (closed.id, closed.type, closed.sequence) == ("roll:5e55:3", "rollcall.roll.closed.v1", 3)
    assert (closed.data.cause, closed.data.ended_by, closed.data.ended_at) == ("submitted", "Root", at)
    assert closed.data.session_version == 2
    assert (submitted.id, submitted.type, submitted.sequence) == ("roll:5e55:4", "rollcall.roll.submitted.v1", 4)
    assert submitted.data.submitted_by_id == "root"
    assert {row.channels for row in service.left} == {(NAMES.roll_channel("5e55"), NAMES.course_channel("c1"))}
    assert [(line.kind, line.command_id) for line in await lines_of(service.engine)][-2:] == [
        ("closed", "s"),
        ("submitted", "s"),
    ]
    assert await service.code(to_join("ben")) == "roll_submitted"
    await all_is_well(service.engine)


async def test_a_roll_is_submitted_once_and_every_repeat_is_answered_as_the_first(service: Service) -> None:
    await an_open_roll(service)
    command = a(SubmitRoll, ADA)
    first: Submission = await service.do(command)
    service.now += timedelta(minutes=9)
    service.left.clear()

    again = await service.do_all([command, a(SubmitRoll, ADA), a(SubmitRoll, ROOT)])

    assert again == [first] * 3
    assert service.left == []
    await service.do(to_mark("ann", "late", reason="a letter"))
    assert await service.do(a(SubmitRoll, ROOT)) == first


async def test_two_submissions_in_one_batch_are_one(service: Service) -> None:
    await an_open_roll(service)

    first, other = await service.do_all([a(SubmitRoll, ADA), a(SubmitRoll, ROOT)])

    assert (first == other, first.submitted_by, len(service.events)) == (True, "Ada", 2)


async def test_only_staff_submit_and_never_a_cancelled_roll(service: Service) -> None:
    await an_open_roll(service)
    await an_open_roll(service, "gone")
    await service.do(cancelled("gone"))

    assert [await service.code(a(SubmitRoll, actor)) for actor in (BOB, ANN, ROBOT)] == ["forbidden"] * 3
    assert await service.code(a(SubmitRoll, ADA, "gone")) == "session_cancelled"
    assert await service.code(a(SubmitRoll, ADA, "nowhere")) == NO_ROLL


async def test_after_a_reopening_a_submission_is_new_and_the_old_command_is_answered_as_it_was(service: Service) -> None:
    await an_open_roll(service)
    old = a(SubmitRoll, ADA)
    first: Submission = await service.do(old)
    await service.do(ended(version=3, cause="submitted"))
    await service.do(started(version=4, reason="too early"))
    service.now += timedelta(minutes=30)

    assert await service.do(old) == first
    assert await value(service.engine, "SELECT status FROM attendance.rolls") == "open"
    second: Submission = await service.do(a(SubmitRoll, ROOT))

    assert (second.submitted_by, second.seq) == ("Root", 6)
    assert await service.do(a(SubmitRoll, ADA)) == second
    assert await service.do(old) == first
    await all_is_well(service.engine)


async def test_an_amendment_needs_a_reason_and_history_keeps_it(service: Service) -> None:
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))

    assert await service.code(to_mark("ann", "late")) == "reason_required"
    assert await service.code(to_mark_all(("ann", "late"))) == "reason_required"
    await service.do(to_mark("ann", "late", reason="the bus"))
    await service.do(to_mark_all(("ben", "late"), reason="the same bus"))
    assert await service.code(to_clear("ann")) == "reason_required"
    await service.do(to_clear("ann", reason="no bus"))

    lines = (await lines_of(service.engine))[-3:]
    assert [(line.kind, line.student_id, line.before, line.after, line.reason) for line in lines] == [
        ("marked", "ann", "absent", "late", "the bus"),
        ("marked", "ben", "absent", "late", "the same bus"),
        ("cleared", "ann", "late", "absent", "no bus"),
    ]
    assert await value(service.engine, "SELECT status FROM attendance.rolls") == "submitted"
    await all_is_well(service.engine)
