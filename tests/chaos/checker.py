"""The judge of a run: pure, from evidence to findings. An empty list is the promise kept."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from attendance_service.rules import Entry, Record
from shared.clock import rfc3339, rfc3339_or_none
from tests.chaos.evidence import Evidence
from tests.chaos.journal import Sent
from tests.roll_replay import Standing, replayed, standing
from tests.system.talk import Payload

MARKED = {
    "markStudentAttendance",
    "markStudentPresent",
    "markStudentAbsent",
    "markStudentLate",
    "markStudentExcused",
    "clearStudentMark",
}
REFUSALS = {
    # The roll may have been closed before the student came.
    "joinAttendanceSession": {"session_completed", "roll_submitted"},
    # It asks not to overrule what it has not seen.
    "markStudentAttendance": {"conflict"},
}
NEXT = {
    None: {"opened"},
    "opened": {"closed"},
    "reopened": {"closed"},
    "closed": {"submitted", "reopened"},
    "submitted": {"reopened"},
}
MAY_DIFFER = ("session_version", "roster_version")
"""What docs/contract.md allows to have moved on when an event is delivered again."""

T = TypeVar("T")


@dataclass
class Findings:
    """What is not as it must be; each list is empty when all is well."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    duplicates: int = 0
    """Events that came more than once, which is allowed."""

    @property
    def any(self) -> list[str]:
        """All of them, with what kind they are."""
        return [
            f"{kind}: {finding}"
            for kind, findings in (("lost", self.lost), ("doubled", self.doubled), ("wrong", self.wrong))
            for finding in findings
        ]


def check(evidence: Evidence) -> Findings:
    """Look at everything."""
    findings = Findings()
    findings.wrong += [f"not settled: {each}" for each in evidence.left]
    findings.wrong += [f"logged {each}" for each in evidence.tracebacks]
    rolls = {session_id: RollFile(evidence, session_id) for session_id in evidence.heads}
    for roll in rolls.values():
        roll.check(findings)
    for sent in evidence.journal:
        _check_command(sent, rolls.get(sent.session_id), findings)
    _check_turns(evidence, findings)
    _check_events(evidence, findings)
    _check_views(evidence, findings)
    _check_parking(evidence, findings)
    return findings


class RollFile:
    """All that Postgres says of one roll, and how it stood at each number."""

    def __init__(self, evidence: Evidence, session_id: str) -> None:
        self.id = session_id
        self.head = evidence.heads[session_id]
        self.entries = evidence.entries.get(session_id, [])
        self.records = evidence.records.get(session_id, {})
        self.session = evidence.sessions.get(session_id)
        self._at: dict[int, dict[str, Standing]] = {}
        self.by_command: defaultdict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in self.entries:
            if entry.command_id is not None:
                self.by_command[entry.actor, entry.command_id].append(entry)

    def at(self, seq: int) -> dict[str, Standing]:
        """How everybody stood at this number, told by history alone."""
        if seq not in self._at:
            later = {entry.student_id for entry in self.entries if entry.kind == "enrolled"}
            told = [entry for entry in self.entries if entry.seq <= seq]
            self._at[seq] = replayed(told, self.records.keys() - later)
        return self._at[seq]

    def line(self, seq: int) -> Entry | None:
        """The line of history with this number."""
        return self.entries[seq - 1] if 0 < seq <= len(self.entries) else None

    def turn_at(self, seq: int) -> str | None:
        """The last turn of the roll itself up to this number."""
        turns = [entry.kind for entry in self.entries if entry.student_id is None and entry.seq <= seq]
        return turns[-1] if turns else None

    def check(self, findings: Findings) -> None:
        """Gapless numbers, right counters, a history that replays, nobody twice, and a session that agrees."""
        head = self.head
        if [entry.seq for entry in self.entries] != list(range(1, head.seq + 1)):
            findings.lost.append(f"{self.id}: history has {[entry.seq for entry in self.entries]} up to {head.seq}")
            return
        counted = Counter(record.status for record in self.records.values())
        if (head.absent, head.present, head.late, head.excused) != tuple(
            counted[status] for status in ("absent", "present", "late", "excused")
        ):
            findings.wrong.append(f"{self.id}: the roll counts {head}, its records {dict(counted)}")
        try:
            told = self.at(head.seq)
        except AssertionError as error:
            findings.wrong.append(f"{self.id}: history contradicts itself at {error}")
            return
        for student, record in self.records.items():
            if told.get(student) != standing(record):
                findings.lost.append(f"{self.id}: history tells {told.get(student)} of {student}, who is {record}")
        self._check_twice(findings)
        states = {"open": "active", "closed": "completed", "submitted": "completed"}
        if self.session is None or self.session.status != states[head.status]:
            findings.wrong.append(f"{self.id}: the roll is {head.status}, its session {self.session}")

    def _check_twice(self, findings: Findings) -> None:
        joins = Counter(entry.student_id for entry in self.entries if entry.kind == "joined")
        findings.doubled += [f"{self.id}: {student} joined {n} times" for student, n in joins.items() if n > 1]
        for (actor, command_id), lines in self.by_command.items():
            times = Counter((entry.kind, entry.student_id) for entry in lines)
            findings.doubled += [f"{self.id}: {command_id} of {actor} did {what}" for what, n in times.items() if n > 1]
        before = None
        for entry in self.entries:
            if entry.student_id is None:
                if entry.kind not in NEXT.get(before, ()):
                    findings.doubled.append(f"{self.id}: {entry.kind} after {before}, number {entry.seq}")
                before = entry.kind


def _check_command(sent: Sent, roll: RollFile | None, findings: Findings) -> None:
    """Hold one answer against what is kept."""
    if sent.answer is None:
        findings.wrong.append(f"never answered: {sent}, for {dict(sent.why_again)}")
        return
    if roll is None:
        findings.lost.append(f"{sent} was answered, and there is no roll")
        return
    if not sent.accepted:
        if sent.code not in REFUSALS.get(sent.event, ()):
            findings.wrong.append(f"{sent} was refused: {sent.answer['error']}")
        if lines := roll.by_command.get((sent.user_id, sent.command_id)):
            findings.wrong.append(f"{sent} was refused with {sent.code}, and done: {lines}")
        return
    try:
        findings.lost += [f"{sent}: {fault}" for fault in _faults(sent, sent.answer, roll)]
    except AssertionError:
        return  # history contradicts itself, which has been said of the roll
    for again in sent.repeated:
        if not again["ok"] or (sent.event not in LIFE and _alike(again) != _alike(sent.answer)):
            findings.wrong.append(f"{sent}: answered {_alike(sent.answer)}, sent again {_alike(again)}")


LIFE = ("startAttendanceSession", "endAttendanceSession", "reopenAttendanceSession")
"""Answered with the roll as it then is."""


def _alike(answer: Payload) -> Payload:
    return {name: value for name, value in answer.items() if name != "server_time"}


def _faults(sent: Sent, answer: Payload, roll: RollFile) -> Iterator[str]:
    """Say in what the answer was not true, or is not kept."""
    match sent.event:
        case "joinAttendanceSession":
            line, record = roll.line(answer["seq"]), roll.records.get(sent.user_id)
            kept = line and (line.kind, line.student_id, line.after, rfc3339(line.at))
            if kept != ("joined", sent.user_id, answer["status"], answer["joined_at"]):
                yield f"answered {answer}, history says {line}"
            if record is None or (record.joined_seq, rfc3339_or_none(record.joined_at)) != (answer["seq"], answer["joined_at"]):
                yield f"answered {answer}, the record is {record}"
        case "startAttendanceSession" | "reopenAttendanceSession":
            yield from _whole(answer, roll)
            if roll.turn_at(answer["seq"]) not in ("opened", "reopened"):
                yield f"the roll was {roll.turn_at(answer['seq'])} at {answer['seq']}"
        case "endAttendanceSession":
            yield from _whole(answer["finalData"], roll)
            if roll.turn_at(answer["finalData"]["seq"]) not in ("closed", "submitted"):
                yield f"the roll was {roll.turn_at(answer['finalData']['seq'])} at {answer['finalData']['seq']}"
        case "submitAttendance":
            line = roll.line(answer["seq"])
            if line is None or line.kind != "submitted":
                yield f"answered {answer['seq']}, where history says {line}"
        case "bulkUpdateAttendance":
            asked = {row["student_id"]: row["status"] for row in sent.payload["attendanceUpdates"]}
            shown = {record["student_id"]: record["status"] for record in answer["updatedRecords"]}
            if shown != asked:
                yield f"asked for {asked}, answered {shown}"
            yield from _shown(answer["updatedRecords"], roll)
        case event:
            assert event in MARKED, event
            record_shown = answer["attendanceRecord"]
            yield from _shown([record_shown], roll)
            own = roll.by_command.get((sent.user_id, sent.command_id), [])
            if any(line.seq != record_shown["seq"] for line in own):
                yield f"answered number {record_shown['seq']}, history says {own}"
            wished = sent.payload.get("status") or event.removeprefix("markStudent").lower()
            if event == "clearStudentMark":
                if record_shown["source"] in ("teacher", "admin"):
                    yield f"cleared, and still a mark: {record_shown}"
            elif record_shown["status"] != wished or record_shown["source"] not in ("teacher", "admin"):
                yield f"asked for {wished}, answered {record_shown}"


def _whole(said: Payload, roll: RollFile) -> Iterator[str]:
    yield from _shown(said["attendanceRecords"], roll, at=said["seq"])
    if {record["student_id"] for record in said["attendanceRecords"]} != roll.at(said["seq"]).keys():
        yield f"not everybody was on it at {said['seq']}"


def _shown(records: list[Payload], roll: RollFile, at: int | None = None) -> Iterator[str]:
    """Hold records that were shown against what history tells of that moment."""
    for record in records:
        told = roll.at(at or record["seq"]).get(record["student_id"])
        if told is None or _view(told) != {name: record[name] for name in _view(told)}:
            yield f"shown {record}, history tells {told}"


def _view(told: Standing) -> dict[str, Any]:
    times = {"marked_at": rfc3339_or_none(told.marked_at), "joined_at": rfc3339_or_none(told.joined_at)}
    return {**told._asdict(), **times}


def _check_turns(evidence: Evidence, findings: Findings) -> None:
    """Each reopening that was asked for took place once; and who asks one after the other leaves the roll closed."""
    asked: Counter[str] = Counter()
    for sent in evidence.journal:
        asked[sent.session_id] += sent.event == "reopenAttendanceSession" and sent.accepted
    for session_id in {sent.session_id for sent in evidence.journal}:
        kinds = Counter(entry.kind for entry in evidence.entries.get(session_id, ()))
        counted = kinds["opened"], kinds["reopened"], kinds["closed"]
        wanted = 1, asked[session_id], 1 + asked[session_id]
        said = f"{session_id}: opened, reopened, closed {counted} times, asked for {wanted}"
        if any(took_place < times for took_place, times in zip(counted, wanted, strict=True)):
            findings.lost.append(said)
        if any(took_place > times for took_place, times in zip(counted, wanted, strict=True)):
            findings.doubled.append(said)


def _check_events(evidence: Evidence, findings: Findings) -> None:
    """Every number of every source was told once, under one id, and what was told of a roll is what history says."""
    first: dict[str, Payload] = {}
    for event in evidence.events:
        before = first.setdefault(event["id"], event)
        if before is not event:
            findings.duplicates += 1
            if _content(before) != _content(event):
                findings.wrong.append(f"event {event['id']} came again as {_content(event)}, first {_content(before)}")
    by_source: defaultdict[str, list[Payload]] = defaultdict(list)
    for event in first.values():
        by_source[event["source"]].append(event)
    last = {f"/rolls/{session_id}": head.seq for session_id, head in evidence.heads.items()}
    last |= {f"/sessions/{session_id}": row.version for session_id, row in evidence.sessions.items()}
    last |= {f"/courses/{course_id}": version for course_id, version in evidence.courses.items()}
    for source in last.keys() | by_source.keys():
        _check_source(source, last.get(source, 0), by_source[source], evidence, findings)


def _check_source(source: str, last: int, events: list[Payload], evidence: Evidence, findings: Findings) -> None:
    events.sort(key=lambda event: int(event["sequence"]))
    spans = [(event["data"]["first_seq"], int(event["sequence"])) for event in events]
    told = [number for first, until in spans for number in range(first, until + 1)]
    if missing := sorted(set(range(1, last + 1)) - set(told)):
        findings.lost.append(f"{source}: no event told {missing} of {last}")
    if len(told) != len(set(told)) or any(number > last for number in told):
        findings.doubled.append(f"{source}: told {spans}, there are {last}")
    lines = {entry.seq: entry for entry in evidence.entries.get(source.removeprefix("/rolls/"), ())}
    for event in events:
        for change in event["data"].get("changes", ()) if source.startswith("/rolls/") else ():
            line = lines.get(change["seq"])
            same = line and (line.kind, line.student_id, line.before, line.after, rfc3339(line.at), line.command_id)
            if same != tuple(change[name] for name in ("kind", "student_id", "before", "after", "at", "command_id")):
                findings.wrong.append(f"{source}: told {change}, history says {line}")


def _content(event: Payload) -> Payload:
    """What must be the same each time: of a roll all but what may have moved on; a session's is told as it now is."""
    fixed = {name: event[name] for name in ("id", "source", "type", "sequence")}
    data = event["data"]
    if event["source"].startswith("/rolls/"):
        return fixed | {"time": event["time"], "data": {name: v for name, v in data.items() if name not in MAY_DIFFER}}
    return fixed | {"first_seq": data["first_seq"]}


def _check_views(evidence: Evidence, findings: Findings) -> None:
    """Each client's copy is what Postgres has; and no student was shown a classmate."""
    for views in evidence.views:
        findings.wrong += views.leaks
        for session_id, copy in views.copies.items():
            head, records = evidence.heads.get(session_id), evidence.records.get(session_id, {})
            if head is None:
                findings.lost.append(f"{views.user_id} sees {session_id}, and there is no roll")
                continue
            kept = {student: _standing(record) for student, record in records.items()}
            if views.student:
                kept = {student: stands for student, stands in kept.items() if student == views.user_id}
            if copy.seq != head.seq or copy.standing != kept:
                findings.wrong.append(
                    f"{views.user_id} sees {session_id} at {copy.seq}, Postgres has {head.seq}:"
                    f" {sorted(set(copy.standing.items()) ^ set(kept.items()))}"
                )


def _standing(record: Record) -> tuple[str, str | None, int]:
    return record.status, rfc3339_or_none(record.joined_at), record.seq


def _check_parking(evidence: Evidence, findings: Findings) -> None:
    """Parked is what was poisoned, all of it and nothing else; what came beside it was done."""
    for body in evidence.parked:
        if sum(word in body for word in evidence.poisons) != 1:
            findings.wrong.append(f"parked without poison: {body[:500]}")
    for word in evidence.poisons:
        if not any(word in body for body in evidence.parked):
            findings.wrong.append(f"{word} was not parked")
    for session_id, command_id in evidence.neighbours:
        done = [entry for entry in evidence.entries.get(session_id, ()) if entry.command_id == command_id]
        if len(done) != 1:
            findings.lost.append(f"{command_id}, beside a poisoned command, was done {len(done)} times on {session_id}")
