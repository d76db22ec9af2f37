"""One roll's listeners in this process: who they are, how far they have heard, and which event is next in turn. No I/O."""

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from gateway.engine.fanout import Connection
from shared.messages import ChangesRead, Event, EventData, Role, RollChanged, decode_event

_RECENT_EVENTS: Final = 256

Kind = Literal["staff", "student"]


class Member(Struct, frozen=True):
    """One socket that listens: its user, whether as staff or as a student, and the connection that leads to it."""

    sid: str
    namespace: str
    user_id: str
    role: Role
    kind: Kind
    link: Connection

    def dismissed_by(self, teacher_ids: Collection[str]) -> bool:
        """Say whether they may not stay where only these teach: a teacher who is none of them."""
        return self.kind == "staff" and self.role == "teacher" and self.user_id not in teacher_ids


@dataclass(slots=True, eq=False)
class Room:
    """One roll's listeners in this process, and how far they have heard."""

    session_id: str
    channel: str
    course_id: str | None = None
    """Known from the first answer on."""
    seq: int | None = None
    """The last number told; None until the first listener is in."""
    members: dict[str, Member] = field(default_factory=dict)
    staff_members: dict[str, Member] = field(default_factory=dict)
    entering: dict[str, Member] = field(default_factory=dict)
    """Those who were answered and are on their way in, which may take a while; whoever is taken out of here stays out."""
    holds: int = 0
    """Callers who are still to be answered."""
    waiting: dict[int, Event[EventData]] = field(default_factory=dict)
    """Events that came before their turn, by first number."""
    recent: deque[Event[EventData]] = field(default_factory=lambda: deque(maxlen=_RECENT_EVENTS))
    ahead: dict[str, int] = field(default_factory=dict)
    """Sockets whose answer was newer than the room: up to which number they know already."""
    hears_of_presence: bool = False
    away: set[str] = field(default_factory=set)
    """The students who left, as staff here were told, and are not back."""
    returned: set[str] = field(default_factory=set)
    """Those who are back, of which staff are still to be told."""
    telling_back: asyncio.Task[None] | None = None
    deaf: bool = False
    """Whether it has been said that Redis confirms nothing, and nothing was confirmed since."""
    mending: asyncio.Task[None] | None = None
    telling: asyncio.Task[None] | None = None
    progress_due: asyncio.TimerHandle | None = None
    progress_at: float = 0.0
    _joins_only_behind: int = 0
    """The last number of the last event told that was not of joins alone."""
    _students: dict[str, tuple[Member, ...]] = field(default_factory=dict)

    def add(self, member: Member) -> bool:
        """Count a socket in, or in as what it is now; say whether it was in before."""
        known = member.sid in self.members
        if known:
            self._uncount(member.sid)
        self.members[member.sid] = member
        if member.kind == "staff":
            self.staff_members[member.sid] = member
        else:
            self._students[member.user_id] = (*self._students.get(member.user_id, ()), member)
        return known

    def remove(self, sid: str) -> Member | None:
        """Count a socket out; None when it was not in."""
        self.ahead.pop(sid, None)
        return self._uncount(sid)

    def _uncount(self, sid: str) -> Member | None:
        member = self.members.pop(sid, None)
        self.staff_members.pop(sid, None)
        if member is not None and member.kind == "student":
            others = tuple(each for each in self.of_student(member.user_id) if each is not member)
            if others:
                self._students[member.user_id] = others
            else:
                del self._students[member.user_id]
        return member

    def expects(self, member: Member) -> bool:
        """Say whether somebody is still on their way in."""
        return self.entering.get(member.sid) is member

    def listener(self, sid: str) -> Member | None:
        """Find who listens at a socket, or is about to."""
        return self.entering.get(sid) or self.members.get(sid)

    def listeners(self) -> list[Member]:
        """List all who listen, and all who are about to."""
        return list({**self.members, **self.entering}.values())

    def of_student(self, student_id: str) -> tuple[Member, ...]:
        """List a student's own sockets, without looking at anybody else's: one commit may change hundreds of records."""
        return self._students.get(student_id, ())

    def behind(self, seq: int, among: Mapping[str, Member]) -> list[Member]:
        """List those of these members whose answers did not tell them of `seq` already."""
        return [member for sid, member in among.items() if self.ahead.get(sid, 0) < seq]

    def missed(self, kind: Kind, seq: int, *, statistics_known: bool) -> list[Event[EventData]] | None:
        """List what somebody who comes in as of a number was not told yet; None where that is not remembered any more.

        Without `statistics_known`, what the newest change made of them was told before they were in, so they missed that. A
        student is told no more than that where only others have joined meanwhile: hundreds come in with one commit.
        """
        if self.seq is None or seq > self.seq:
            return []
        if seq == self.seq:
            return [] if statistics_known else self._last_change()
        # What is not remembered may have been their own mark.
        if kind == "student" and self.recent and seq >= max(self._joins_only_behind, self.recent[0].data.first_seq - 1):
            return self._last_change()
        said = [after(event, seq) for event in takewhile(lambda event: event.sequence > seq, reversed(self.recent))]
        said.reverse()
        return said if said and said[0].data.first_seq <= seq + 1 else None

    def _last_change(self) -> list[Event[EventData]]:
        """Give the last event, without its changes, when it told of records.

        Not while the room is to be told of its statistics anyway: hundreds come in with the same event.
        """
        last = self.recent[-1] if self.recent and self.progress_due is None else None
        if last is None or not isinstance(last.data, RollChanged):
            return []
        return [replace(last, data=replace(last.data, first_seq=last.sequence + 1, changes=()))]

    def take(self) -> Event[EventData] | None:
        """Take the event whose turn it is, if it is here, and count it as told."""
        if self.seq is None or (event := self._next(self.seq)) is None:
            return None
        self.seq = event.sequence
        if not (isinstance(event.data, RollChanged) and all(change.kind == "joined" for change in event.data.changes)):
            self._joins_only_behind = self.seq
        self.recent.append(event)
        return event

    def forget_the_past(self) -> None:
        """Drop what need not be kept any more, now that `seq` has been told."""
        if (told := self.seq) is not None:
            self.ahead = {sid: seq for sid, seq in self.ahead.items() if seq > told}
            self.waiting = {first: event for first, event in self.waiting.items() if event.sequence > told}

    def _next(self, told: int) -> Event[EventData] | None:
        event = self.waiting.pop(told + 1, None)
        if event is not None:
            return event
        for first, event in self.waiting.items():
            if first <= told < event.sequence:
                del self.waiting[first]
                return after(event, told)
        return None


def after(event: Event[EventData], told: int) -> Event[EventData]:
    """Cut off what of an event was told already (a page of changes may end within a commit)."""
    data = event.data
    if data.first_seq > told or not isinstance(data, RollChanged):
        return event
    # One change for each number: found by place, for hundreds come in with one batch.
    rest = data.changes[told + 1 - data.first_seq :]
    return replace(event, data=replace(data, first_seq=told + 1, changes=rest))


def without_gaps(session_id: str, read: ChangesRead, since: int) -> list[Event[EventData]]:
    """Read a page's events, with a silent one in place of what this version does not know: it must hold up nothing."""
    events: list[Event[EventData]] = []
    reached = since

    def pass_over(upto: int) -> None:
        if upto > reached:
            source = f"/rolls/{session_id}"
            events.append(Event(id="", source=source, time="", sequence=upto, data=EventData(first_seq=reached + 1)))

    known = [event for event in map(decode_event, read.events) if event is not None]
    for event in sorted(known, key=lambda event: event.data.first_seq):
        pass_over(event.data.first_seq - 1)
        events.append(event)
        reached = max(reached, event.sequence)
    pass_over(read.seq)
    return events
