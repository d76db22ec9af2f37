"""The judge of chaos runs is judged: a run that is whole passes, and each way of breaking the promise is found."""

import copy
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from attendance_service import rules
from attendance_service.rules import Entry, Record
from shared.clock import rfc3339
from tests.chaos import growth as growths
from tests.chaos.checker import check
from tests.chaos.evidence import Evidence, Head, SessionRow, tracebacks
from tests.chaos.growth import Growth
from tests.chaos.journal import Sent, Views
from tests.chaos.world import Loop, World
from tests.system.copies import Copy
from tests.system.talk import Payload

NINE = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ROLL = "5e55"


def at(seq: int) -> datetime:
    return NINE + timedelta(seconds=seq)


def line(seq: int, kind: Any, student: str | None, before: Any, after: Any, actor: str, command_id: str | None) -> Entry:
    source: Any = "self" if kind == "joined" else "teacher"
    return Entry(
        session_id=ROLL,
        seq=seq,
        at=at(seq),
        kind=kind,
        student_id=student,
        before=before,
        after=after,
        source=source,
        actor=actor,
        actor_name=actor.title(),
        command_id=command_id,
    )


ENTRIES = [
    line(1, "opened", None, None, None, "ada", None),
    line(2, "joined", "ann", "absent", "present", "ann", "k1"),
    line(3, "marked", "ben", "absent", "late", "ada", "k2"),
    line(4, "closed", None, None, None, "ada", None),
]
ANN = Record(
    session_id=ROLL,
    student_id="ann",
    student_name="Ann",
    status="present",
    source="self",
    seq=2,
    joined_at=at(2),
    joined_seq=2,
    joined_status="present",
)
BEN = Record(
    session_id=ROLL,
    student_id="ben",
    student_name="Ben",
    status="late",
    source="teacher",
    seq=3,
    marked_by="ada",
    marked_at=at(3),
)


def shown(record: Record) -> Payload:
    seen: Payload = to_builtins(rules.view(record))
    return seen


def sent(user: str, event: str, command_id: str, answer: Payload, **payload: Any) -> Sent:
    about = {"session_id": ROLL, "command_id": command_id, **payload}
    return Sent(user, ROLL, event, about, 0.0, 1, 1.0, {"ok": True, "server_time": rfc3339(at(9)), **answer})


def event(kind: str, first: int, last: int, *, entries: Sequence[Entry] = (), **data: Any) -> Payload:
    changes = [
        {
            "seq": entry.seq,
            "kind": entry.kind,
            "student_id": entry.student_id,
            "before": entry.before,
            "after": entry.after,
            "at": rfc3339(entry.at),
            "command_id": entry.command_id,
        }
        for entry in (entries or ENTRIES)[first - 1 : last]
        if entry.student_id
    ]
    return {
        "id": f"roll:{ROLL}:{last}",
        "source": f"/rolls/{ROLL}",
        "type": f"rollcall.roll.{kind}.v1",
        "time": rfc3339(at(last)),
        "sequence": f"{last:020d}",
        "data": {"first_seq": first, **({"changes": changes} if changes else {}), **data},
    }


def of_session(number: int) -> Payload:
    return event("x", number, number) | {
        "id": f"session:{ROLL}:{number}",
        "source": f"/sessions/{ROLL}",
        "data": {"first_seq": number},
    }


def whole_evidence() -> Evidence:
    """A roll of two, on which one joined, one was marked, and which was ended: everything as it must be."""
    standing: dict[str, tuple[str, str | None, int]] = {"ann": ("present", rfc3339(at(2)), 2), "ben": ("late", None, 3)}
    told = [event("opened", 1, 1), event("changed", 2, 3), event("closed", 4, 4, session_version=3)]
    return Evidence(
        journal=[
            sent("ann", "joinAttendanceSession", "k1", {"status": "present", "joined_at": rfc3339(at(2)), "seq": 2}),
            sent("ada", "markStudentLate", "k2", {"attendanceRecord": shown(BEN)}, student_id="ben"),
            sent("ada", "endAttendanceSession", "k3", {"finalData": {"attendanceRecords": [shown(ANN), shown(BEN)], "seq": 4}}),
        ],
        views=[
            Views("ada", False, {ROLL: Copy(True, 4, standing)}),
            Views("ann", True, {ROLL: Copy(False, 4, {"ann": standing["ann"]})}),
        ],
        heads={ROLL: Head("closed", "ended", 4, 0, 1, 1, 0)},
        entries={ROLL: list(ENTRIES)},
        records={ROLL: {"ann": ANN, "ben": BEN}},
        sessions={ROLL: SessionRow("completed", 3, 3, 3)},
        events=[*told, copy.deepcopy(told[1]), *map(of_session, (1, 2, 3))],
        parked=["{poison-1"],
        poisons=["poison-1"],
    )


LONG = [
    line(1, "opened", None, None, None, "ada", None),
    line(2, "joined", "ann", "absent", "present", "ann", "k1"),
    line(3, "marked", "ben", "absent", "late", "ada", "k2"),
    line(4, "cleared", "ben", "late", "absent", "ada", "k3"),
    line(5, "marked", "ann", "present", "excused", "ada", "k4"),
    line(6, "marked", "ben", "absent", "present", "ada", "k4"),
    line(7, "closed", None, None, None, "ada", None),
    line(8, "reopened", None, None, None, "ada", None),
    line(9, "closed", None, None, None, "ada", None),
    line(10, "submitted", None, None, None, "ada", "k8"),
]


def long_evidence() -> Evidence:
    """A roll with everything that a teacher may do to it: cleared, many marked at once, reopened, ended again, submitted."""
    marked: dict[str, Any] = {"source": "teacher", "marked_by": "ada"}
    absent = [Record(session_id=ROLL, student_id=each, student_name=each.title(), seq=1) for each in ("ann", "ben")]
    cleared = replace(BEN, status="absent", source="system", seq=4, marked_by=None, marked_at=None)
    ann = replace(ANN, status="excused", seq=5, marked_at=at(5), **marked)
    ben = replace(BEN, status="present", seq=6, marked_at=at(6), **marked)
    asked = [{"student_id": "ann", "status": "excused"}, {"student_id": "ben", "status": "present"}]
    after = [shown(ann), shown(ben)]
    evidence = Evidence(
        journal=[
            sent("ada", "startAttendanceSession", "k0", {"attendanceRecords": [shown(each) for each in absent], "seq": 1}),
            sent("ada", "clearStudentMark", "k3", {"attendanceRecord": shown(cleared)}, student_id="ben"),
            sent("ada", "bulkUpdateAttendance", "k4", {"updatedRecords": after, "seq": 6}, attendanceUpdates=asked),
            sent("ada", "endAttendanceSession", "k5", {"finalData": {"attendanceRecords": after, "seq": 7}}),
            sent("ada", "reopenAttendanceSession", "k6", {"attendanceRecords": after, "seq": 8}),
            sent("ada", "endAttendanceSession", "k7", {"finalData": {"attendanceRecords": after, "seq": 9}}),
            sent("ada", "submitAttendance", "k8", {"seq": 10}),
        ],
        heads={ROLL: Head("submitted", "ended", 10, 0, 1, 0, 1)},
        entries={ROLL: list(LONG)},
        records={ROLL: {"ann": ann, "ben": ben}},
        sessions={ROLL: SessionRow("completed", 3, 3, 3)},
        events=[event("changed", 1, 10, entries=LONG), *map(of_session, (1, 2, 3))],
    )
    return copy.deepcopy(evidence)


def answer_of(evidence: Evidence, command_id: str) -> Payload:
    [found] = [each for each in evidence.journal if each.command_id == command_id]
    assert found.answer is not None
    return found.answer


def test_a_whole_run_is_found_whole() -> None:
    assert check(long_evidence()).any == []
    findings = check(whole_evidence())
    assert findings.any == []
    assert findings.duplicates == 1


def lose_the_join(evidence: Evidence) -> None:
    """As if the transaction had been rolled back after the answer."""
    evidence.entries[ROLL] = [ENTRIES[0], replace(ENTRIES[2], seq=2), replace(ENTRIES[3], seq=3)]
    evidence.records[ROLL] = {"ann": Record(session_id=ROLL, student_id="ann", student_name="Ann", seq=1), "ben": BEN}
    evidence.heads[ROLL] = Head("closed", "ended", 3, 1, 0, 1, 0)


def lose_a_line(evidence: Evidence) -> None:
    evidence.entries[ROLL].pop(2)


def lose_the_mark_of_a_record(evidence: Evidence) -> None:
    evidence.records[ROLL]["ben"] = replace(BEN, status="absent")


def lose_the_end(evidence: Evidence) -> None:
    evidence.entries[ROLL].pop()
    evidence.heads[ROLL] = Head("open", None, 3, 0, 1, 1, 0)


def lose_an_event(evidence: Evidence) -> None:
    evidence.events = [each for each in evidence.events if each["id"] != f"roll:{ROLL}:3"]


def lose_what_came_beside_poison(evidence: Evidence) -> None:
    evidence.neighbours = [(ROLL, "k9")]


def join_twice(evidence: Evidence) -> None:
    evidence.entries[ROLL][2] = line(3, "joined", "ann", "present", "present", "ann", "k4")


def mark_twice(evidence: Evidence) -> None:
    evidence.entries[ROLL].insert(3, line(4, "marked", "ben", "late", "late", "ada", "k2"))
    evidence.entries[ROLL][4] = replace(ENTRIES[3], seq=5)
    evidence.heads[ROLL] = evidence.heads[ROLL]._replace(seq=5)


def close_twice(evidence: Evidence) -> None:
    evidence.entries[ROLL].append(line(5, "closed", None, None, None, "ada", None))
    evidence.heads[ROLL] = evidence.heads[ROLL]._replace(seq=5)


def publish_a_change_under_two_ids(evidence: Evidence) -> None:
    evidence.events.append(evidence.events[1] | {"id": "another"})


def publish_another_thing_under_the_same_id(evidence: Evidence) -> None:
    evidence.events[3]["data"]["changes"][0]["after"] = "late"


def publish_what_history_does_not_say(evidence: Evidence) -> None:
    for each in (evidence.events[1], evidence.events[3]):
        each["data"]["changes"][0]["after"] = "excused"


def miscount(evidence: Evidence) -> None:
    evidence.heads[ROLL] = evidence.heads[ROLL]._replace(present=2)


def contradict_oneself(evidence: Evidence) -> None:
    evidence.entries[ROLL][2] = replace(ENTRIES[2], before="present")


def do_what_was_refused(evidence: Evidence) -> None:
    evidence.journal[0].answer = {"ok": False, "error": {"code": "session_completed", "retryable": False}}


def refuse_without_need(evidence: Evidence) -> None:
    evidence.journal = [*evidence.journal, sent("ada", "markStudentLate", "k8", {"ok": False, "error": {"code": "internal"}})]


def never_answer(evidence: Evidence) -> None:
    evidence.journal[1].answer = None


def answer_otherwise_the_second_time(evidence: Evidence) -> None:
    first = evidence.journal[0]
    assert first.answer is not None
    first.repeated = [{**first.answer, "status": "late"}]


def show_an_old_copy(evidence: Evidence) -> None:
    evidence.views[0].copies[ROLL].standing["ben"] = ("absent", None, 1)


def show_a_classmate(evidence: Evidence) -> None:
    evidence.views[1].look_for_leaks("attendanceUpdated", {"attendanceRecord": {"student_id": "ben"}})


def park_what_is_sound(evidence: Evidence) -> None:
    evidence.parked.append('[{"type":"JoinRoll"}]')


def swallow_poison(evidence: Evidence) -> None:
    evidence.parked.clear()


def leave_the_session_active(evidence: Evidence) -> None:
    evidence.sessions[ROLL] = SessionRow("active", 3, 3, 3)


def log_a_traceback(evidence: Evidence) -> None:
    evidence.tracebacks += tracebacks(
        "gateway-1", '{"event": "sockets.command_failed", "exception": "Traceback\\nKeyError: 1"}'
    )


def stay_restless(evidence: Evidence) -> None:
    evidence.left.append("1 rows in attendance.outbox")


BREAKING: dict[str, list[Callable[[Evidence], None]]] = {
    "lost": [
        lose_the_join,
        lose_a_line,
        lose_the_mark_of_a_record,
        lose_the_end,
        lose_an_event,
        lose_what_came_beside_poison,
    ],
    "doubled": [join_twice, mark_twice, close_twice, publish_a_change_under_two_ids],
    "wrong": [
        publish_another_thing_under_the_same_id,
        publish_what_history_does_not_say,
        miscount,
        contradict_oneself,
        do_what_was_refused,
        refuse_without_need,
        never_answer,
        answer_otherwise_the_second_time,
        show_an_old_copy,
        show_a_classmate,
        park_what_is_sound,
        swallow_poison,
        leave_the_session_active,
        log_a_traceback,
        stay_restless,
    ],
}


@pytest.mark.parametrize(
    ("kind", "broken"),
    [(kind, broken) for kind, ways in BREAKING.items() for broken in ways],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_each_way_of_breaking_the_promise_is_found(kind: str, broken: Callable[[Evidence], None]) -> None:
    evidence = whole_evidence()
    broken(evidence)
    found = check(evidence)
    assert getattr(found, kind), found


def start_with_somebody_missing(evidence: Evidence) -> None:
    answer_of(evidence, "k0")["attendanceRecords"].pop()


def reopen_what_stays_closed(evidence: Evidence) -> None:
    answer_of(evidence, "k6")["seq"] = 9


def end_with_another_roll(evidence: Evidence) -> None:
    answer_of(evidence, "k7")["finalData"]["attendanceRecords"][0]["status"] = "late"


def submit_at_another_number(evidence: Evidence) -> None:
    answer_of(evidence, "k8")["seq"] = 9


def mark_many_but_not_all(evidence: Evidence) -> None:
    answer_of(evidence, "k4")["updatedRecords"].pop()


def clear_and_keep_the_mark(evidence: Evidence) -> None:
    answer_of(evidence, "k3")["attendanceRecord"]["source"] = "teacher"


def never_reopen(evidence: Evidence) -> None:
    """Though it was answered: the roll was closed once."""
    evidence.entries[ROLL] = [*LONG[:7], replace(LONG[9], seq=8)]
    evidence.heads[ROLL] = evidence.heads[ROLL]._replace(seq=8)


def reopen_for_nobody(evidence: Evidence) -> None:
    evidence.journal = [each for each in evidence.journal if each.command_id not in ("k6", "k7")]


def close_once_too_few_and_reopen_once_too_many(evidence: Evidence) -> None:
    """Neither count makes up for the other."""
    evidence.entries[ROLL][8] = replace(LONG[8], kind="reopened")


def see_a_roll_that_is_not_kept(evidence: Evidence) -> None:
    evidence.views = [Views("ada", False, {"another": Copy(True, 4, {})})]


LOST, DOUBLED = "lost", "doubled"


@pytest.mark.parametrize(
    ("kinds", "broken"),
    [
        ({LOST}, start_with_somebody_missing),
        ({LOST}, reopen_what_stays_closed),
        ({LOST}, end_with_another_roll),
        ({LOST}, submit_at_another_number),
        ({LOST}, mark_many_but_not_all),
        ({LOST}, clear_and_keep_the_mark),
        ({LOST}, never_reopen),
        ({DOUBLED}, reopen_for_nobody),
        ({LOST, DOUBLED}, close_once_too_few_and_reopen_once_too_many),
        ({LOST}, see_a_roll_that_is_not_kept),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_each_way_of_breaking_what_a_teacher_was_answered_is_found(kinds: set[str], broken: Callable[[Evidence], None]) -> None:
    evidence = long_evidence()
    broken(evidence)
    found = check(evidence)
    assert kinds <= {kind for kind in (LOST, DOUBLED) if getattr(found, kind)}, found


def test_a_leak_is_found_and_a_steady_process_is_not() -> None:
    growth = Growth(World(Path(), cast(Loop, None), {}))
    for number in range(60):
        growth.note("gateway-1", "memory MB", 80.0 + 2 * number)
        growth.note("gateway-2", "memory MB", 80.0 + number % 3)
        growth.note("gateway-1", "connections", 9.0)
    assert growth.findings() == ["grew: gateway-1, memory MB: median 99.0 in the first third, 179.0 in the last"]
    assert growth.lines() == [
        "  gateway-1, connections: 9.0, then 9.0, at most 9.0",
        "  gateway-1, memory MB: 99.0, then 179.0, at most 198.0",
        "  gateway-2, memory MB: 81.0, then 81.0, at most 82.0",
    ]


def test_watching_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growths, "EVERY_SECONDS", 0.0)
    growth, over = Growth(World(Path(), cast(Loop, None), {})), threading.Event()

    def watched() -> None:
        over.set()
        raise ZeroDivisionError("no such process")

    monkeypatch.setattr(growth, "_sample", watched)
    growth.watch(over)
    assert growth.findings() == ["growth was not watched: ZeroDivisionError('no such process')"]


def test_a_parked_messages_traceback_is_expected_and_a_librarys_is_not() -> None:
    parked = '{"event": "worker.parked", "exception": "Traceback\\nDataError: \\\\x00"}'
    assert tracebacks("attendance_service-1", parked) == []
    assert tracebacks("gateway-1", "Traceback (most recent call last):") == ["gateway-1: Traceback (most recent call last):"]
