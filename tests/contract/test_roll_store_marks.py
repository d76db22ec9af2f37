"""attendance-service on a real Postgres: marks, bulks and clearing, each done once however often it comes."""

import random
from datetime import timedelta
from typing import Any, get_args

import pytest
from msgspec import to_builtins
from msgspec.structs import replace
from sqlalchemy import text

from shared.clock import rfc3339
from shared.errors import NO_ROLL, Refused, Unavailable
from shared.messages import Mark, MarksStored, MarkStored, Status, SubmitRoll
from tests.contract.roll_talk import (
    ADA,
    BOB,
    NAMES,
    NINE,
    ROBOT,
    ROOT,
    Service,
    a,
    all_is_well,
    an_open_roll,
    cancelled,
    heard,
    lines_of,
    record_of,
    rows,
    some_students,
    statements,
    to_clear,
    to_join,
    to_mark,
    to_mark_all,
    value,
)

pytest_plugins = ("tests.contract.roll_fixtures",)


# Marking


async def test_a_mark_is_answered_and_told(service: Service) -> None:
    await an_open_roll(service)
    service.now += timedelta(minutes=3)

    stored: MarkStored = await service.do(to_mark("ann", "excused", remarks="ill", reason="letter", command_id="7"))

    at = rfc3339(service.now)
    assert (stored.record.status, stored.record.remarks, stored.record.source) == ("excused", "ill", "teacher")
    assert (stored.record.marked_by, stored.record.marked_at, stored.record.seq, stored.seq) == ("ada", at, 2, 2)
    assert (stored.updated_by, stored.updated_by_id, stored.updated_at) == ("Ada", "ada", at)
    assert (stored.statistics.excused_count, stored.statistics.absent_count) == (1, 2)
    [event] = service.events
    assert (event.id, event.data.first_seq, event.sequence, event.data.bulk) == ("roll:5e55:2", 2, 2, False)
    [change] = event.data.changes
    assert (change.kind, change.student_id, change.student_name, change.before, change.after) == (
        "marked",
        "ann",
        "Ann",
        "absent",
        "excused",
    )
    assert (change.source, change.actor, change.actor_name, change.at) == ("teacher", "ada", "Ada", at)
    assert (change.remarks, change.reason, change.command_id, change.joined_at) == ("ill", "letter", "7", None)
    assert event.data.statistics == stored.statistics
    assert service.left[0].channels == (NAMES.roll_channel("5e55"),)
    await all_is_well(service.engine)


async def test_marks_in_a_batch_are_one_commit_and_each_is_refused_alone(service: Service) -> None:
    await an_open_roll(service)
    await an_open_roll(service, "gone")
    await service.do(cancelled("gone"))
    service.left.clear()

    answers = await service.do_all(
        [
            to_mark("ann", "late"),
            to_mark("eve", "late"),
            to_mark("ann", "late", session_id="nowhere"),
            to_mark("ben", "late", BOB),
            to_mark("ben", "late", ROBOT),
            to_mark("ann", "late", session_id="gone"),
            to_mark("ann", "present", expected_seq=1),
            to_mark("ann", "present", ROOT, expected_seq=2),
            to_mark("cid", "excused"),
        ]
    )

    codes = [answer.code if isinstance(answer, Refused) else answer.seq for answer in answers]
    assert codes == [2, "not_enrolled", NO_ROLL, "forbidden", "forbidden", "session_cancelled", "conflict", 3, 4]
    assert [answers[number].record.status for number in (0, 7, 8)] == ["late", "present", "excused"]
    assert heard(service.events) == [(2, "ann"), (3, "ann"), (4, "cid")]
    assert len(service.events) == 1
    await all_is_well(service.engine)


async def test_a_conflict_shows_the_record_as_it_is(service: Service) -> None:
    await an_open_roll(service)
    stored: MarkStored = await service.do(to_mark("ann", "late", ROOT))

    conflict = await service.refusal(to_mark("ann", "present", expected_seq=1))

    assert conflict.code == "conflict"
    assert conflict.details[0]["attendanceRecord"] == to_builtins(stored.record)


async def test_a_mark_that_is_so_already_takes_no_number_and_names_who_made_it(service: Service) -> None:
    await an_open_roll(service)
    first: MarkStored = await service.do(to_mark("ann", "late", ROOT))
    service.now += timedelta(minutes=9)
    service.left.clear()

    again: MarkStored = await service.do(to_mark("ann", "late", expected_seq=1))

    assert (again, again.updated_by) == (first, "Root")
    assert service.left == []
    assert await value(service.engine, "SELECT seq FROM attendance.rolls") == 2


async def test_a_join_under_a_mark_is_what_changed_the_record_last(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_mark("ann", "late"))
    await service.do(to_join("ann"))

    again: MarkStored = await service.do(to_mark("ann", "late"))

    assert (again.seq, again.updated_by, again.record.marked_by) == (3, "Ann", "ada")


async def test_a_batch_of_marks_takes_as_many_statements_as_one(service: Service) -> None:
    students = some_students(300)
    for session in ("r1", "r2", "r3"):
        await an_open_roll(service, session, students)
    await service.do(to_mark(students[0], "late", session_id="r1"))
    counts = []
    for batch in ([(1, "r1")], [(n, session) for n in range(2, 172) for session in ("r1", "r2", "r3")]):
        with statements(service.engine) as sent:
            await service.do_all([to_mark(students[number], "late", session_id=session) for number, session in batch])
        counts.append(len(sent))

    assert counts[0] == counts[1] <= 9
    for session in ("r1", "r2", "r3"):
        await all_is_well(service.engine, session)


async def test_a_bulk_takes_as_many_statements_as_one_row(service: Service) -> None:
    students = some_students(1001)
    await an_open_roll(service, students=students)
    await service.do(to_mark(students[0], "late"))
    counts = []
    for chosen in (students[:1], students[1:]):
        with statements(service.engine) as sent:
            await service.do(to_mark_all(*((student, "excused") for student in chosen)))
        counts.append(len(sent))

    assert counts[0] == counts[1] <= 8
    await all_is_well(service.engine)


# Done once


async def test_a_redelivered_batch_of_marks_changes_nothing_and_answers_to_the_letter(service: Service) -> None:
    await an_open_roll(service)
    batch = [to_mark("ann", "late"), to_mark("ben", "excused"), to_mark("ann", "present"), to_mark("eve", "late")]
    first = await service.do_all(batch)
    service.now += timedelta(minutes=9)
    service.left.clear()

    again = await service.do_all(batch)

    assert again[:3] == first[:3]
    assert (again[3].code, service.left) == (first[3].code, [])
    assert await value(service.engine, "SELECT seq FROM attendance.rolls") == 4
    await all_is_well(service.engine)


async def test_an_older_mark_that_comes_again_after_a_newer_one_is_not_done_again(service: Service) -> None:
    await an_open_roll(service)
    older = to_mark("ann", "late")
    first = await service.do(older)
    await service.do(to_mark("ann", "excused", ROOT))

    assert await service.do(older) == first
    assert (await record_of(service, "ann")).status == "excused"


async def test_a_mark_that_was_no_change_is_not_done_when_it_comes_again_after_another(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_mark("ann", "late", ROOT))
    no_change = to_mark("ann", "late")
    first = await service.do(no_change)
    await service.do(to_mark("ann", "present"))

    assert await service.do(no_change) == first
    assert (await record_of(service, "ann")).status == "present"


async def test_a_mark_that_comes_twice_in_one_batch_is_done_once(service: Service) -> None:
    await an_open_roll(service)
    older, newer = to_mark("ann", "late"), to_mark("ann", "present")

    first, _, again = await service.do_all([older, newer, replace(older, reply_to=to_join("x").reply_to)])

    assert again == first
    assert (await record_of(service, "ann")).seq == 3


async def test_a_command_id_is_its_actors_own_and_its_rolls(service: Service) -> None:
    for session in ("r1", "r2"):
        await an_open_roll(service, session)

    answers = await service.do_all(
        [
            to_mark("ann", "late", session_id="r1", command_id="1"),
            to_mark("ann", "present", ROOT, session_id="r1", command_id="1"),
            to_mark("ann", "excused", session_id="r2", command_id="1"),
        ]
    )

    assert [answer.record.status for answer in answers] == ["late", "present", "excused"]


async def test_a_command_id_is_good_for_one_kind_of_command(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_mark("ann", "late", command_id="1"))
    await service.do(to_clear("ann", command_id="2"))

    assert await service.code(to_clear("ann", command_id="1")) == "conflict"
    assert await service.code(to_mark_all(("ann", "late"), command_id="1")) == "conflict"
    assert await service.code(a(SubmitRoll, ADA, command_id="1")) == "conflict"
    assert await service.code(to_mark("ann", "late", command_id="2")) == "conflict"
    assert (await record_of(service, "ann")).source == "system"


async def test_a_refused_mark_may_succeed_under_the_same_id(service: Service) -> None:
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))
    command = to_mark("ann", "late")
    assert await service.code(command) == "reason_required"

    stored: MarkStored = await service.do(replace(command, reason="a letter"))

    assert stored.record.status == "late"


async def test_nothing_is_remembered_when_the_commit_fails(service: Service) -> None:
    await an_open_roll(service)
    async with service.engine.begin() as connection:
        for statement in (
            """CREATE FUNCTION attendance.fail() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$""",
            """CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON attendance.answers
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attendance.fail()""",
        ):
            await connection.execute(text(statement))
    batch = [to_mark("ann", "late"), to_mark("ben", "late")]

    with pytest.raises(Unavailable):
        await service.handle(batch)

    assert await rows(service.engine, "SELECT * FROM attendance.answers") == []
    await all_is_well(service.engine)
    async with service.engine.begin() as connection:
        await connection.execute(text("DROP TRIGGER fail ON attendance.answers"))
    assert [answer.seq for answer in await service.do_all(batch)] == [2, 3]


# Clearing


async def test_a_cleared_mark_is_answered_and_told(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    await service.do(to_mark("ann", "excused", remarks="ill"))
    service.left.clear()
    command = to_clear("ann", ROOT, reason="well again")

    stored: MarkStored = await service.do(command)

    assert (stored.record.status, stored.record.source, stored.record.remarks, stored.seq) == ("present", "self", None, 4)
    assert (stored.record.marked_by, stored.record.marked_at, stored.updated_by) == (None, None, "Root")
    [change] = service.events[0].data.changes
    assert (change.kind, change.before, change.after, change.reason) == ("cleared", "excused", "present", "well again")
    assert change.joined_at == stored.record.joined_at
    await service.do(to_mark("ann", "late"))
    assert await service.do(command) == stored
    await all_is_well(service.engine)


async def test_where_there_is_no_mark_clearing_changes_nothing_and_names_who_changed_the_record_last(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    service.left.clear()

    own, untouched = await service.do_all([to_clear("ann", ROOT), to_clear("ben", ROOT)])

    assert (own.record.status, own.seq, own.updated_by_id) == ("present", 2, "ann")
    assert (untouched.record.status, untouched.seq, untouched.updated_by_id) == ("absent", 1, "ada")
    assert service.left == []
    assert [answer.code for answer in await service.do_all([to_clear("ann", BOB), to_clear("eve")])] == [
        "forbidden",
        "not_enrolled",
    ]


# Many at once


async def test_a_bulk_is_one_commit_one_event_and_answers_every_record_named_in_order(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_mark("ben", "late"))
    service.left.clear()

    stored: MarksStored = await service.do(to_mark_all(("cid", "excused"), ("ben", "late"), ("ann", "present"), by=ROOT))

    assert [(record.student_id, record.status, record.seq) for record in stored.records] == [
        ("cid", "excused", 3),
        ("ben", "late", 2),
        ("ann", "present", 4),
    ]
    assert (stored.seq, stored.updated_by, stored.updated_by_id) == (4, "Root", "root")
    assert (stored.statistics.present_count, stored.statistics.excused_count) == (1, 1)
    [event] = service.events
    assert (event.data.bulk, event.data.first_seq, event.sequence) == (True, 3, 4)
    assert heard([event]) == [(3, "cid"), (4, "ann")]
    await all_is_well(service.engine)


async def test_a_bulk_with_one_bad_row_changes_nothing_and_names_it(service: Service) -> None:
    await an_open_roll(service)

    missing = await service.refusal(to_mark_all(("ann", "late"), ("eve", "late"), ("ben", "late")))
    twice = await service.refusal(to_mark_all(("ann", "late"), ("ben", "late"), ("ann", "present")))

    assert (missing.code, [detail["field"] for detail in missing.details]) == (
        "not_enrolled",
        ["attendanceUpdates[1].student_id"],
    )
    assert (twice.code, [detail["field"] for detail in twice.details]) == ("invalid", ["attendanceUpdates[2].student_id"])
    assert service.left == []
    assert {record[0] for record in await rows(service.engine, "SELECT status FROM attendance.records")} == {"absent"}
    await all_is_well(service.engine)


async def test_bulks_that_came_together_are_each_refused_alone_and_told_alone(service: Service) -> None:
    await an_open_roll(service)

    first, bad, forbidden, nowhere, last = await service.do_all(
        [
            to_mark_all(("ann", "late"), ("ben", "late")),
            to_mark_all(("cid", "late"), ("eve", "late")),
            to_mark_all(("cid", "late"), by=BOB),
            to_mark_all(("cid", "late"), session_id="nowhere"),
            to_mark_all(("ben", "excused"), ("cid", "excused")),
        ]
    )

    assert (first.seq, bad.code, forbidden.code, nowhere.code, last.seq) == (3, "not_enrolled", "forbidden", NO_ROLL, 5)
    assert [(event.data.bulk, event.data.first_seq, event.sequence) for event in service.events] == [(True, 2, 3), (True, 4, 5)]
    await all_is_well(service.engine)


async def test_a_redelivered_bulk_changes_nothing_and_answers_to_the_letter(service: Service) -> None:
    await an_open_roll(service)
    bulk = to_mark_all(("ann", "late"), ("ben", "late"))
    first = await service.do(bulk)
    await service.do(to_mark("ann", "present"))
    service.now += timedelta(minutes=9)
    service.left.clear()

    assert await service.do(bulk) == first
    assert service.left == []
    assert (await record_of(service, "ann")).status == "present"


async def test_a_bulk_that_is_so_already_is_no_event(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_mark_all(("ann", "late"), ("ben", "late")))
    service.left.clear()

    stored: MarksStored = await service.do(to_mark_all(("ben", "late"), ("ann", "late")))

    assert (stored.seq, [record.seq for record in stored.records], service.left) == (3, [3, 2], [])


# Everything at once


async def test_whatever_is_asked_in_whatever_order_history_tells_the_roll(service: Service) -> None:
    """Joins, marks, bulks and clearings at random, each batch delivered twice; what history said once it says for ever."""
    chance = random.Random(3)
    students = some_students(12)
    await an_open_roll(service, students=students)

    def something(kind: int) -> Any:
        student, status = chance.choice(students), chance.choice(get_args(Status))
        by = chance.choice([ADA, ROOT])
        marks = tuple(Mark(student_id=each, status=status) for each in chance.sample(students, 4))
        made: list[Any] = [
            to_join(student, received_at=NINE + timedelta(minutes=chance.randrange(20))),
            to_mark(student, status, by, remarks=chance.choice(["ill", None])),
            to_clear(student, by),
            replace(to_mark_all(by=by), marks=marks),
        ]
        return made[kind]

    lines: list[Any] = []
    for _ in range(40):
        kind = chance.randrange(4)
        batch = [something(kind) for _ in range(chance.randrange(1, 8))]
        first = await service.do_all(batch)
        again = await service.do_all(batch)
        assert kind == 0 or again == first
        before, lines = lines, await lines_of(service.engine)
        assert lines[: len(before)] == before
        service.now += timedelta(minutes=1)

    await all_is_well(service.engine)
