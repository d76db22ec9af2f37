"""attendance-service on a real Postgres: who reads what of a roll, of a course, and of themselves."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from attendance_service.handlers import reads
from shared.clock import rfc3339
from shared.errors import NO_ROLL
from shared.messages import (
    ActiveSessions,
    Actor,
    AwaitNews,
    Change,
    ChangesRead,
    CourseSummary,
    Event,
    HistoryPage,
    News,
    OwnRecords,
    ReadActiveSessions,
    ReadChanges,
    ReadHistory,
    ReadOwnRecords,
    ReadRoll,
    RecordsCommand,
    RollChanged,
    RollRead,
    RollSynced,
    Status,
    SubmitRoll,
    SummarizeCourse,
    SyncRoll,
    decode_event,
)
from tests.contract.roll_talk import (
    ADA,
    ANN,
    BOB,
    NINE,
    ROBOT,
    ROOT,
    Service,
    a,
    an_open_roll,
    asking,
    cancelled,
    changed,
    ended,
    heard,
    some_students,
    started,
    statements,
    taught_by,
    to_join,
    to_mark,
    to_mark_all,
)

pytest_plugins = ("tests.contract.roll_fixtures",)


# Reading


async def test_staff_read_a_roll_and_nobody_else(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    actors = [ADA, ROOT, ROBOT, BOB, Actor("ann", "Ann", "student"), Actor("ada", "Ada", "student")]

    answers = await service.do_all([a(ReadRoll, actor) for actor in actors])

    for answer in answers[:3]:
        assert (answer.seq, [record.status for record in answer.records]) == (2, ["present", "absent", "absent"])
    assert [answer.code for answer in answers[3:]] == ["forbidden"] * 3
    assert [await service.code(a(ReadChanges, actor, since_seq=0)) for actor in actors] == [None] * 3 + ["forbidden"] * 3


async def test_a_roll_asked_for_by_many_is_read_once_for_all(service: Service) -> None:
    for session in ("r1", "r2"):
        await an_open_roll(service, session)
    batch = [a(ReadRoll, ADA, session) for session in ("r1", "r2") * 20]

    with statements(service.engine) as sent:
        answers = await service.do_all(batch)

    assert [answer.session.id for answer in answers] == ["r1", "r2"] * 20
    assert len(sent) <= 6


async def test_a_roll_that_is_not_there_is_refused_for_the_gateway_to_explain(service: Service) -> None:
    for command in (to_join("ann"), a(ReadRoll, ADA), a(ReadChanges, ROBOT, since_seq=0)):
        assert await service.code(command) == NO_ROLL


async def all_changes(service: Service, since: int) -> tuple[list[Event[Any]], list[int]]:
    """Ask as a gateway does, until there is no more; return the events and how far each answer reached."""
    events: list[Event[Any]] = []
    reached = []
    while True:
        answer: ChangesRead = await service.do(a(ReadChanges, ROBOT, since_seq=since))
        reached.append(answer.seq)
        if not answer.events:
            return events, reached
        found = [decode_event(raw) for raw in answer.events]
        events += [event for event in found if event is not None]
        since = answer.seq


@pytest.mark.parametrize("page", [1, 3, 1000])
async def test_what_was_missed_is_read_as_the_events_that_were_published(
    service: Service, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(reads, "CHANGES_PER_PAGE", page)
    await service.do(started(students=some_students(9)))
    for batch in (("s00000", "s00001"), ("s00002",), ("s00003", "s00004", "s00005", "s00006")):
        await service.do_all([to_join(student) for student in batch])
    await service.do(ended())
    published = service.events

    for since in range(10):
        missed, reached = await all_changes(service, since)

        covered = [seq for event in missed for seq in range(event.data.first_seq, event.sequence + 1)]
        assert covered == list(range(since + 1, 10))
        assert heard(missed) == [line for line in heard(published) if line[0] > since]
        assert [e for e in missed if not isinstance(e.data, RollChanged)] == [
            e for e in published if not isinstance(e.data, RollChanged) and e.sequence > since
        ]
        assert reached[-1] == 9
        assert {each.source for each in missed} <= {"/rolls/5e55"}
    changes = {c.seq: c for e in published if isinstance(e.data, RollChanged) for c in e.data.changes}
    assert {
        c.seq: c for e in (await all_changes(service, 0))[0] if isinstance(e.data, RollChanged) for c in e.data.changes
    } == (changes)


async def test_who_is_ahead_missed_nothing(service: Service) -> None:
    await an_open_roll(service)

    answer: ChangesRead = await service.do(a(ReadChanges, ROBOT, since_seq=99))

    assert answer.events == ()


async def test_a_roll_is_read_as_it_stood_at_one_moment(replicas: list[Service]) -> None:
    """While others join, the numbers, the records and the statistics of each answer belong together."""
    reader, writer = replicas
    students = some_students(200)
    await an_open_roll(writer, students=students)

    async def write() -> None:
        for number in range(0, 200, 5):
            await writer.do_all([to_join(student) for student in students[number : number + 5]])

    writing = asyncio.create_task(write())
    seen = set()
    while not writing.done():
        roll: RollRead = await reader.do(a(ReadRoll, ADA))
        present = sum(record.status == "present" for record in roll.records)
        assert roll.statistics.present_count == present == roll.seq - 1
        seen.add(roll.seq)
    await writing
    assert len(seen) > 1


async def test_what_was_missed_of_a_whole_life_is_read_as_it_was_told(service: Service) -> None:
    """Turns to the letter; changes with the first join from the line on where it came; bulks as bulks."""
    await service.do(started())
    await service.do(to_mark("ann", "excused"))
    await service.do(to_join("ann"))
    await service.do(to_mark("ben", "late"))
    await service.do(to_mark_all(("ann", "present"), ("cid", "late")))
    await service.do(changed(version=3, students=("ann", "ben", "cid", "dan"), roster_version=2))
    await service.do(a(SubmitRoll, ADA))
    await service.do(to_mark("dan", "late", reason="bus"))
    await service.do(started(version=4, reason="too early", students=("ann", "ben", "cid", "dan"), roster_version=2))
    await service.do(cancelled(version=5))
    published = service.events
    turns = [event for event in published if not isinstance(event.data, RollChanged)]
    assert [event.sequence for event in turns] == [1, 8, 9, 11, 12]

    for since in range(13):
        missed, _ = await all_changes(service, since)

        assert [event for event in missed if not isinstance(event.data, RollChanged)] == [
            event for event in turns if event.sequence > since
        ]
        changes = {c.seq: c for e in missed if isinstance(e.data, RollChanged) for c in e.data.changes}
        assert changes == {
            c.seq: c for e in published if isinstance(e.data, RollChanged) for c in e.data.changes if c.seq > since
        }
        bulks = [(e.data.first_seq, e.sequence) for e in missed if isinstance(e.data, RollChanged) and e.data.bulk]
        assert bulks == ([(5, 6)] if since < 5 else [])
    [line] = [change for change in changes_of(await all_changes(service, 0)) if change.seq == 2]
    assert line.joined_at is None, "the join came after"


def changes_of(missed: tuple[list[Event[Any]], list[int]]) -> list[Change]:
    return [change for event in missed[0] if isinstance(event.data, RollChanged) for change in event.data.changes]


# Catching up


async def test_staff_catch_up_with_every_record_that_changed_since(service: Service) -> None:
    await an_open_roll(service)
    await service.do_all([to_join("ann"), to_join("ben")])
    await service.do(to_mark("ann", "late"))

    answers: list[RollSynced] = await service.do_all([a(SyncRoll, ADA, since_seq=since) for since in (None, 0, 2, 3, 4, 5)])

    assert [answer.mode for answer in answers] == ["whole", "changes", "changes", "changes", "changes", "whole"]
    assert [[record.student_id for record in answer.records] for answer in answers] == [
        ["ann", "ben", "cid"],
        ["ann", "ben", "cid"],
        ["ann", "ben"],
        ["ann"],
        [],
        ["ann", "ben", "cid"],
    ]
    assert {(answer.as_staff, answer.seq, answer.statistics.present_count) for answer in answers} == {(True, 4, 1)}
    assert answers[0].session.id == "5e55"


async def test_students_catch_up_with_their_own_record_and_the_statistics(service: Service) -> None:
    await an_open_roll(service)
    await service.do_all([to_join("ann"), to_join("ben")])

    own, unchanged, changed_since = await service.do_all([a(SyncRoll, ANN, since_seq=since) for since in (None, 2, 1)])

    for answer in (own, changed_since):
        assert [(record.student_id, record.status) for record in answer.records] == [("ann", "present")]
    assert (own.mode, unchanged.mode, unchanged.records) == ("whole", "changes", ())
    assert (own.as_staff, own.statistics.present_count, own.seq) == (False, 2, 3)


async def test_a_sync_says_whether_its_asker_has_joined_whatever_it_tells_of(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    await service.do_all([to_mark("ann", "excused"), to_mark("ben", "present")])
    ben = Actor("ben", "Ben", "student")
    asked = [(actor, since) for actor in (ANN, ben, ADA) for since in (None, 4)]

    answers: list[RollSynced] = await service.do_all([a(SyncRoll, actor, since_seq=since) for actor, since in asked])

    assert [answer.joined for answer in answers] == [True, True, False, False, False, False]


async def test_enrolment_decides_who_catches_up_and_not_the_role(service: Service) -> None:
    await an_open_roll(service, students=("ann", "ben", "bob"))
    await service.do(changed(version=3, students=("ann", "bob"), roster_version=2, removed=("ben",)))
    actors = [ROOT, ROBOT, BOB, Actor("ben", "Ben", "student"), Actor("eve", "Eve", "student"), Actor("cat", "Cat", "teacher")]

    answers = await service.do_all([a(SyncRoll, actor, since_seq=None) for actor in actors])

    assert [answer.as_staff for answer in answers[:3]] == [True, True, False]
    assert [answer.code for answer in answers[3:]] == ["not_enrolled", "not_enrolled", "forbidden"]
    assert await service.code(a(SyncRoll, ADA, "nowhere", since_seq=None)) == NO_ROLL


async def test_a_classroom_that_comes_back_at_once_is_read_in_a_few_statements(service: Service) -> None:
    students = some_students(200)
    await an_open_roll(service, students=students)
    batch = [a(SyncRoll, Actor(student, student, "student"), since_seq=None) for student in students]

    with statements(service.engine) as sent:
        answers = await service.do_all([*batch, a(SyncRoll, ADA, since_seq=None)])

    assert [[record.student_id for record in answer.records] for answer in answers[:-1]] == [[s] for s in students]
    assert len(answers[-1].records) == 200
    assert len(sent) <= 4


# History


async def test_history_is_read_in_pages_oldest_first(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_mark("ann", "excused", remarks="ill", reason="letter", command_id="7"))
    await service.do_all([to_join("ann"), to_join("ben")])
    await service.do(ended())

    pages: list[HistoryPage] = []
    since: int | None = 0
    while since is not None:
        pages.append(await service.do(a(ReadHistory, ADA, since_seq=since, limit=2)))
        since = pages[-1].next_seq

    items = [item for page in pages for item in page.items]
    assert [(item.seq, item.kind, item.student_id) for item in items] == [
        (1, "opened", None),
        (2, "marked", "ann"),
        (3, "joined", "ann"),
        (4, "joined", "ben"),
        (5, "closed", None),
    ]
    assert [len(page.items) for page in pages] == [2, 2, 1]
    mark = items[1]
    assert (mark.before, mark.after, mark.remarks, mark.reason, mark.command_id) == ("absent", "excused", "ill", "letter", "7")
    assert (mark.student_name, mark.joined_at, items[2].joined_at) == ("Ann", None, rfc3339(NINE + timedelta(minutes=1)))
    exactly: HistoryPage = await service.do(a(ReadHistory, ADA, since_seq=3, limit=2))
    assert (len(exactly.items), exactly.next_seq) == (2, None)


async def test_history_is_for_staff(service: Service) -> None:
    await an_open_roll(service)
    actors = [ADA, ROOT, ROBOT, BOB, ANN]

    assert [await service.code(a(ReadHistory, actor, since_seq=0, limit=9)) for actor in actors] == [
        None,
        None,
        None,
        "forbidden",
        "forbidden",
    ]
    assert await service.code(a(ReadHistory, ADA, "nowhere", since_seq=0, limit=9)) == NO_ROLL


# One's own


async def test_a_student_reads_their_own_records_with_their_history_newest_session_first(service: Service) -> None:
    for session in ("s1", "s2", "s3"):
        await an_open_roll(service, session, course_id="c2" if session == "s2" else "c1")
    await service.do(to_join("ann", "s1"))
    await service.do_all([to_mark("ann", "late", session_id="s1"), to_mark("ben", "late", session_id="s1")])
    await service.do(ended("s1"))

    first: OwnRecords = await service.do(asking(ReadOwnRecords, ANN, course_id=None, limit=2))
    rest: OwnRecords = await service.do(asking(ReadOwnRecords, ANN, course_id=None, limit=2, cursor=first.next_cursor))
    of_course: OwnRecords = await service.do(asking(ReadOwnRecords, ANN, course_id="c1", limit=2))

    assert ([item.session.id for item in first.items], first.next_cursor) == (["s3", "s2"], "s2")
    assert ([item.session.id for item in rest.items], rest.next_cursor) == (["s1"], None)
    assert ([item.session.id for item in of_course.items], of_course.next_cursor) == (["s3", "s1"], None)
    assert {item.record.student_id for item in (*first.items, *rest.items)} == {"ann"}
    [item] = rest.items
    assert (item.session.status, item.record.status, item.record.seq) == ("completed", "late", 3)
    assert [(line.seq, line.kind, line.student_id) for line in item.history] == [(2, "joined", "ann"), (3, "marked", "ann")]
    assert first.items[0].history == ()


async def test_ones_own_history_has_ones_join_in_its_place_among_the_rest(service: Service) -> None:
    for session in ("s1", "s2"):
        await an_open_roll(service, session)
    await service.do(to_mark("ann", "late", session_id="s1"))
    await service.do_all([to_join("ben", "s1"), to_join("ann", "s1"), to_join("ann", "s2")])
    await service.do(to_mark("ann", "excused", session_id="s1"))

    own: OwnRecords = await service.do(asking(ReadOwnRecords, ANN, course_id=None, limit=2))

    lines = {item.session.id: [(line.seq, line.kind, line.student_id) for line in item.history] for item in own.items}
    assert lines == {"s1": [(2, "marked", "ann"), (4, "joined", "ann"), (5, "marked", "ann")], "s2": [(2, "joined", "ann")]}


async def test_who_is_on_no_roll_has_no_records_whatever_their_role(service: Service) -> None:
    await an_open_roll(service, students=("ann", "ada"))

    eve: OwnRecords = await service.do(asking(ReadOwnRecords, Actor("eve", "Eve", "student"), course_id=None, limit=9))
    ada: OwnRecords = await service.do(asking(ReadOwnRecords, ADA, course_id=None, limit=9))

    assert (eve.items, eve.next_cursor) == ((), None)
    assert [item.record.student_id for item in ada.items] == ["ada"]


# A course's


async def test_the_open_rolls_of_a_course_are_its_active_sessions_oldest_first(service: Service) -> None:
    for number, session in enumerate(("s3", "s1", "s2", "s4")):
        service.now = NINE + timedelta(minutes=number)
        await an_open_roll(service, session, course_id="c2" if session == "s4" else "c1", title=f"Title of {session}")
    await service.do_all([to_join("ann", "s3"), to_join("ben", "s3")])
    await service.do(to_mark("cid", "present", session_id="s3"))
    await service.do(ended("s1"))

    active: ActiveSessions = await service.do(asking(ReadActiveSessions, ROBOT, course_id="c1"))

    assert [(item.session_id, item.title, item.student_count) for item in active.items] == [
        ("s3", "Title of s3", 2),
        ("s2", "Title of s2", 0),
    ]
    assert active.items[0].started_at == rfc3339(NINE)


async def test_a_summary_counts_the_taken_rolls_of_a_course(service: Service) -> None:
    """Those that were closed and not cancelled; also those who have left, under the newest name a roll has for them."""
    for session in ("s1", "s2", "s3", "s4"):
        await an_open_roll(service, session, students=("ann", "ben") if session == "s2" else ("ann", "ben", "cid"))
    await an_open_roll(service, "other", course_id="c2")
    stood: dict[str, Status] = {"s1": "present", "s2": "late", "s3": "excused", "s4": "late"}
    for session, status in stood.items():
        await service.do(to_mark("ann", status, session_id=session))
    await service.do(a(SubmitRoll, ADA, "s1"))
    await service.do_all([ended("s2"), ended("other")])
    await service.do(cancelled("s3"))

    summary: CourseSummary = await service.do(asking(SummarizeCourse, ROOT, course_id="c1"))

    assert summary.taken_sessions == 2
    assert [
        (s.student_id, s.student_name, s.present_count, s.late_count, s.excused_count, s.absent_count) for s in summary.students
    ] == [("ann", "Ann", 1, 1, 0, 0), ("ben", "Ben", 0, 0, 0, 2), ("cid", "Cid", 0, 0, 0, 1)]
    nothing: CourseSummary = await service.do(asking(SummarizeCourse, ROOT, course_id="c9"))
    assert nothing == CourseSummary(taken_sessions=0, students=())


@pytest.mark.parametrize("kind", [ReadActiveSessions, SummarizeCourse])
async def test_a_course_is_counted_once_for_all_who_ask_together(service: Service, kind: type[RecordsCommand]) -> None:
    """A lecture hall that subscribes at once must not queue seconds of counting before its joins."""
    await an_open_roll(service)

    counted = []
    for askers in (1, 20):
        with statements(service.engine) as sent:
            answers = await service.do_all([asking(kind, ROBOT, course_id="c1") for _ in range(askers)])
        counted.append(len(sent))
        assert [answer == answers[0] for answer in answers] == [True] * askers

    assert counted[0] == counted[1]


async def test_of_courses_only_admins_and_services_are_told(service: Service) -> None:
    for kind in (ReadActiveSessions, SummarizeCourse):
        codes = [await service.code(asking(kind, actor, course_id="c1")) for actor in (ROOT, ROBOT, ADA, ANN)]
        assert codes == [None, None, "forbidden", "forbidden"]


# News


async def test_news_have_arrived_once_every_version_named_is_reached(service: Service) -> None:
    for session in ("r1", "r2"):
        await an_open_roll(service, session, version=2, roster_version=1)

    async def heard_of(**news: Any) -> str | None:
        return await service.code(asking(AwaitNews, ROBOT, news=News(course_id="c1", **news)))

    assert await heard_of() is None
    assert await heard_of(session_versions={"r1": 2, "r2": 2}, roster_version=1) is None
    assert await heard_of(course_version=2) == "unavailable"
    assert await heard_of(session_versions={"r1": 2, "r2": 3}) == "unavailable"
    assert await heard_of(session_versions={"r1": 2}, roster_version=2) == "unavailable"
    assert await heard_of(session_versions={"nowhere": 1}) == "unavailable"

    await service.handle([taught_by("ada", version=3)])
    await service.do_all([changed(each, version=4, students=("ann",), roster_version=3) for each in ("r1", "r2")])

    assert await heard_of(course_version=3, roster_version=3, session_versions={"r1": 4, "r2": 4}) is None
    assert await heard_of(course_version=4) == "unavailable"


async def test_only_the_gateway_itself_awaits_news(service: Service) -> None:
    for actor in (ADA, ROOT, ANN):
        assert await service.code(asking(AwaitNews, actor, news=News(course_id="c1"))) == "forbidden"
    refusal = await service.refusal(asking(AwaitNews, ROBOT, news=News(course_id="c1", course_version=1)))
    assert refusal.retryable
