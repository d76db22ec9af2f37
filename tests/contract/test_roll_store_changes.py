"""attendance-service on a real Postgres: rolls follow what changes about their sessions, rosters and courses."""

from datetime import timedelta

import pytest
from msgspec.structs import replace

from shared.clock import rfc3339
from shared.errors import NotYet
from shared.messages import CheckIn, Enrolled, RollRead, SubmitRoll
from tests.contract.roll_talk import (
    ADA,
    BOB,
    NINE,
    STUDENTS,
    Service,
    a,
    alike,
    all_is_well,
    an_open_roll,
    changed,
    ended,
    heard,
    lines_of,
    record_of,
    rows,
    some_students,
    started,
    statements,
    taught_by,
    to_join,
    to_mark,
    value,
)

pytest_plugins = ("tests.contract.roll_fixtures",)


# Changes of a session


async def test_a_changed_session_is_shown_as_it_is_now_and_takes_no_number(service: Service) -> None:
    await an_open_roll(service)

    roll: RollRead = await service.do(changed(version=3, title="Fields", topic="Fields"))

    assert (roll.session.title, roll.seq, service.left) == ("Fields", 1, [])
    assert (await service.do(changed(version=3, title="Rings"))).session.title == "Fields"


async def test_a_changed_check_in_decides_anew_on_own_joins(service: Service) -> None:
    await an_open_roll(service)
    at = NINE + timedelta(minutes=7)
    first = await service.do(to_join("ann", received_at=at))
    await service.do(to_join("ben", received_at=at))
    await service.do(to_mark("ben", "late"))
    service.left.clear()

    roll: RollRead = await service.do(changed(version=3, check_in=CheckIn(late_after_minutes=30)))

    assert [record.status for record in roll.records] == ["present", "late", "absent"]
    [event] = service.events
    [change] = event.data.changes
    assert (change.kind, change.student_id, change.before, change.after, change.actor) == (
        "redecided",
        "ann",
        "late",
        "present",
        "ada",
    )
    assert (change.seq, change.joined_at) == (5, rfc3339(at))
    assert (await service.do(to_join("cid", received_at=NINE + timedelta(minutes=29)))).status == "present"
    assert alike(await service.do(to_join("ann"))) == alike(first)
    await all_is_well(service.engine)


async def test_a_change_before_the_start_is_no_matter_and_of_an_active_session_too_early(service: Service) -> None:
    outcome = await service.handle([changed(version=2, status="scheduled", started_at=None)])
    assert (outcome.answers, outcome.events) == ([], [])

    with pytest.raises(NotYet):
        await service.do(changed(version=3))


async def test_a_change_that_has_overtaken_the_reopening_waits_for_it(service: Service) -> None:
    await an_open_roll(service)
    await service.do(ended(version=3))
    early = changed(version=5, students=(*STUDENTS, "dan"), roster_version=2, turn_version=4)

    with pytest.raises(NotYet):
        await service.do(early)

    await service.do(started(version=4, reason="too early"))
    await service.do(early)
    assert heard(service.events) == [(4, "dan")]


async def test_an_enrolment_that_has_overtaken_the_reopening_of_a_submitted_roll_waits_for_it(service: Service) -> None:
    """The roll closed itself and has heard of no end; a batch groups what it brings by kind, and so may turn the two around."""
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))
    early = changed(version=4, students=(*STUDENTS, "dan"), roster_version=2, turn_version=3)

    with pytest.raises(NotYet):
        await service.do(early)

    await service.do(started(version=3, reason="too early"))
    await service.do(early)
    assert (await service.do(to_join("dan"))).status == "present"
    await all_is_well(service.engine)


async def test_an_enrolment_before_a_reopening_is_on_the_roll_after_it(service: Service) -> None:
    """The closed roll only noted the roster; the reopening brings the same one."""
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))
    await service.do(changed(version=3, students=(*STUDENTS, "dan"), roster_version=2))

    await service.do(started(version=4, reason="too early", students=(*STUDENTS, "dan"), roster_version=2))

    assert (await service.do(to_join("dan"))).status == "present"
    await all_is_well(service.engine)


async def test_many_enrolments_at_once_read_the_roll_once(service: Service) -> None:
    """Else a dozen walk-ins at the door of a large lecture hold the roll longer than others wait for it."""
    await an_open_roll(service)
    names = [f"w{number}" for number in range(9)]
    news = [
        changed(version=3 + number, students=(*STUDENTS, *names[: number + 1]), roster_version=2 + number)
        for number in range(len(names))
    ]

    with statements(service.engine) as sent:
        await service.do_all(news)

    # Once under the lock, and once for the answers.
    assert len([each for each in sent if "FROM attendance.records WHERE session_id =" in each]) == 2
    assert heard(service.events) == [(2 + number, name) for number, name in enumerate(names)]
    await all_is_well(service.engine)


async def test_a_change_after_the_submission_keeps_when_the_roll_was_closed(service: Service) -> None:
    """The session is still to hear of the submission; its change was made while it was active."""
    await an_open_roll(service)
    await service.do(a(SubmitRoll, ADA))
    ended_at = await value(service.engine, "SELECT session ->> 'ended_at' FROM attendance.rolls")

    roll: RollRead = await service.do(changed(version=3, title="Fields"))

    assert (roll.session.title, roll.session.status, roll.session.ended_at) == ("Fields", "completed", ended_at)
    assert ended_at is not None


async def test_an_end_that_has_overtaken_a_change_of_the_check_in_brings_it_along(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann", received_at=NINE + timedelta(minutes=7)))
    check_in = CheckIn(late_after_minutes=30)

    roll: RollRead = await service.do(ended(version=4, check_in=check_in))
    await service.do(changed(version=3, check_in=check_in))

    assert (roll.records[0].status, roll.seq) == ("present", 4)
    assert [line.kind for line in await lines_of(service.engine)] == ["opened", "joined", "redecided", "closed"]
    await all_is_well(service.engine)


# Rosters


async def test_who_enrols_while_the_roll_is_open_is_added_and_may_join(service: Service) -> None:
    await an_open_roll(service)

    roll: RollRead = await service.do(changed(version=3, students=(*STUDENTS, "dan", "eva"), roster_version=2))

    assert (roll.seq, roll.statistics.total_students, roll.statistics.absent_count) == (3, 5, 5)
    [event] = service.events
    assert [(c.kind, c.seq, c.student_id, c.student_name, c.before, c.after) for c in event.data.changes] == [
        ("enrolled", 2, "dan", "Dan", None, "absent"),
        ("enrolled", 3, "eva", "Eva", None, "absent"),
    ]
    assert (await service.do(to_join("eva"))).seq == 4
    await all_is_well(service.engine)


async def test_who_leaves_keeps_the_record_joins_no_more_and_may_again_when_back(service: Service) -> None:
    await an_open_roll(service)
    first = await service.do(to_join("ann"))
    service.left.clear()

    await service.do(changed(version=3, students=("cid",), roster_version=2, removed=("ann", "ben")))

    assert service.left == [], "that is no change of the roll"
    assert await value(service.engine, "SELECT count(*) FROM attendance.records") == 3
    assert await service.code(to_join("ben")) == "not_enrolled"
    assert alike(await service.do(to_join("ann"))) == alike(first)
    assert (await service.do(to_mark("ben", "excused"))).record.status == "excused"
    await service.do(changed(version=4, students=STUDENTS, roster_version=3))
    assert (await service.do(to_join("ben"))).status == "excused"
    await all_is_well(service.engine)


async def test_rosters_that_arrive_in_another_order_end_as_the_newest(service: Service) -> None:
    """A change of the title may overtake an enrolment, and an older roster changes nothing."""
    await an_open_roll(service)
    news = [
        changed(version=3, students=(*STUDENTS, "dan"), roster_version=2),
        changed(version=4, students=("ann", "dan"), roster_version=3),
        changed(version=5, title="Fields"),
    ]

    for event in (news[2], news[1], news[0], news[1], news[2]):
        await service.do(event)

    versions = "SELECT session_version, roster_version, seq FROM attendance.rolls"
    assert await rows(service.engine, versions) == [(5, 3, 2)]
    enrolled = [(await record_of(service, student)).enrolled for student in (*STUDENTS, "dan")]
    assert enrolled == [True, False, False, True]
    assert await value(service.engine, "SELECT session ->> 'title' FROM attendance.rolls") == "Fields"
    await all_is_well(service.engine)


async def test_an_enrolment_heard_after_the_close_adds_nobody_until_the_roll_is_open_again(service: Service) -> None:
    await an_open_roll(service)
    await service.do(ended(version=4))

    roll: RollRead = await service.do(changed(version=3, students=(*STUDENTS, "dan"), roster_version=2))

    assert (roll.seq, len(roll.records)) == (2, 3)
    assert await value(service.engine, "SELECT roster_version FROM attendance.rolls") == 2
    again = started(version=5, reason="too early", students=(*STUDENTS, "dan"), roster_version=2)
    assert [record.student_id for record in (await service.do(again)).records] == [*STUDENTS, "dan"]


async def test_a_walk_in_without_a_name_gets_the_one_of_their_token(service: Service) -> None:
    nameless = started()
    roster = (Enrolled("ann", ""), *nameless.data.roster[1:])
    await service.do(replace(nameless, data=replace(nameless.data, roster=roster)))

    await service.do(to_join("ann"))

    assert (await record_of(service, "ann")).student_name == "Ann"
    assert service.events[-1].data.changes[0].student_name == "Ann"


async def test_a_roster_of_ten_thousand_is_followed_in_as_many_statements_as_a_small_one(service: Service) -> None:
    counts = []
    for session, size in (("small", 3), ("large", 10_000)):
        await an_open_roll(service, session, some_students(size))
        with statements(service.engine) as sent:
            await service.do(changed(session, version=3, students=some_students(size + 500)[1:], roster_version=2))
        counts.append(len(sent))
        await all_is_well(service.engine, session)

    assert counts[0] == counts[1] <= 12


# Courses


async def test_the_courses_teachers_act_on_its_rolls_whoever_taught_when_they_were_opened(service: Service) -> None:
    """At once, also on rolls that are closed: a substitute may, who was removed may not."""
    await an_open_roll(service)
    await service.do(ended())

    outcome = await service.handle([taught_by("bob")])

    assert outcome.answers == []
    assert await service.code(to_mark("ann", "late", ADA)) == "forbidden"
    assert (await service.do(to_mark("ann", "late", BOB))).updated_by == "Bob"
    roll: RollRead = await service.do(started(version=4, reason="too early"))
    assert roll.session.teacher_ids == ("bob",)


async def test_an_older_word_on_a_course_changes_nothing(service: Service) -> None:
    await an_open_roll(service)

    await service.handle(
        [taught_by("bob", version=3), taught_by("cat", version=2), taught_by("dog", version=1, course_id="c2")]
    )
    await service.handle([taught_by("ada", version=2)])

    courses = "SELECT id, version, teacher_ids FROM attendance.courses ORDER BY id"
    assert await rows(service.engine, courses) == [("c1", 3, ["bob"]), ("c2", 1, ["dog"])]
    assert await service.code(to_mark("ann", "late", ADA)) == "forbidden"


async def test_a_start_that_overtakes_the_news_of_its_course_brings_its_teachers(service: Service) -> None:
    """A substitute who starts the session at once may mark at once; what comes late changes nothing."""
    await service.handle([taught_by("ada", version=1)])

    await service.do(started(course_version=3, teacher_ids=("bob",)))

    assert await service.code(to_mark("ann", "late", ADA)) == "forbidden"
    assert (await service.do(to_mark("ann", "late", BOB))).seq == 2
    await service.handle([taught_by("ada", version=2)])
    assert (await service.do(to_mark("ann", "present", BOB))).seq == 3


async def test_a_course_that_is_not_known_yet_has_the_teachers_its_roll_was_opened_with(service: Service) -> None:
    await an_open_roll(service)

    assert await service.code(to_mark("ann", "late", BOB)) == "forbidden"
    assert (await service.do(to_mark("ann", "late", ADA))).seq == 2
