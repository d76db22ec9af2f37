"""Who watches a course, and what each knows: that a session is on, and that it is over, each watcher hears once.

A course's events have no common numbers. Each session's are compared with what was heard of it, so that a repeat counts for
nothing; and with what each watcher's own list showed, for an answer tells them as much as an event.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from gateway.room import Member
from shared.messages import ActiveSession, RollClosed, RollOpened

_RECENT_TURNS: Final = 64
"""As many are remembered of a course: for who comes in, and to know a repeat."""

Turn: TypeAlias = RollOpened | RollClosed


class Heard(NamedTuple):
    """A session's beginning or end: the how-manieth that was heard of the course, and its number on its roll."""

    number: int
    seq: int
    turn: Turn


@dataclass(slots=True, eq=False)
class Watcher:
    """One socket that watches."""

    member: Member
    on: set[str]
    """The sessions they know to be on: of their list, or because they were told."""
    since: int
    """As of which of the course's turns they know that, until they are in."""
    doubted: bool = False
    """Whether session-service must first say that they may."""

    def learns(self, turn: Turn) -> bool:
        """Take in that a session is on or over; False when that is nothing new to them."""
        known, on = turn.session_id in self.on, isinstance(turn, RollOpened)
        (self.on.add if on else self.on.discard)(turn.session_id)
        return known is not on


@dataclass(slots=True, eq=False)
class Watched:
    """One course's watchers in this process, and what was heard of its sessions."""

    course_id: str
    watchers: dict[str, Watcher] = field(default_factory=dict)
    entering: dict[str, Watcher] = field(default_factory=dict)
    """Those on their way in; whoever is taken out of here stays out."""
    recent: deque[Heard] = field(default_factory=lambda: deque(maxlen=_RECENT_TURNS))
    turns: int = 0
    """How many sessions' beginnings and ends were heard."""

    def listeners(self) -> list[Watcher]:
        """List all who watch, and all who are about to."""
        return list({**self.watchers, **self.entering}.values())

    def unaware(self, active: Sequence[ActiveSession]) -> list[Watcher]:
        """List the watchers who take other sessions to be on."""
        shown = {session.session_id for session in active}
        return [watcher for watcher in self.watchers.values() if watcher.on != shown]

    def heard_of(self, session_id: str) -> int:
        """Tell up to which number of its roll a session was heard of."""
        return next((heard.seq for heard in reversed(self.recent) if heard.turn.session_id == session_id), 0)

    def turns_since(self, number: int) -> list[Turn]:
        """List the last turn of each session that had one since."""
        return list({heard.turn.session_id: heard.turn for heard in self.recent if heard.number > number}.values())


TellTurn = Callable[[Turn, Collection[Member]], None]
"""Tells some of a course's watchers that a session is on or over."""
TellActive = Callable[[str, Sequence[ActiveSession], Collection[Member]], None]
"""Tells some of a course's watchers which of its sessions are on."""


class Watchers:
    """All course watchers of this gateway."""

    def __init__(self, tell_turn: TellTurn, tell_active: TellActive) -> None:
        """`tell_turn` and `tell_active` are the relay's."""
        self._tell_turn = tell_turn
        self._tell_active = tell_active
        self._by_socket: dict[str, dict[str, Watched]] = {}

    def admit(self, course: Watched, member: Member, since: int, active: Sequence[ActiveSession]) -> None:
        """Let a socket watch that is answered with `active`, read after the course's turn `since`, once the answer is sent."""
        watcher = Watcher(member, {session.session_id for session in active}, since)
        course.entering[member.sid] = watcher
        self._by_socket.setdefault(member.sid, {})[course.course_id] = course
        asyncio.get_running_loop().call_soon(self.let_in, course, watcher)

    def let_in(self, course: Watched, watcher: Watcher) -> None:
        """Let somebody in who is still on their way, and tell them of the turns since that they do not know of."""
        member = watcher.member
        if course.entering.get(member.sid) is not watcher:
            return
        del course.entering[member.sid]
        watcher.doubted = False
        course.watchers[member.sid] = watcher
        for turn in course.turns_since(watcher.since):
            if watcher.learns(turn):
                self._tell_turn(turn, [member])

    def doubt(self, course: Watched, watcher: Watcher) -> None:
        """Have a watcher hear nothing until it is known whether they may; then they are let in and have missed nothing."""
        member = watcher.member
        if course.watchers.get(member.sid) is watcher:
            del course.watchers[member.sid]
            watcher.since, watcher.doubted = course.turns, True
            course.entering.setdefault(member.sid, watcher)

    def leave(self, course_id: str, sid: str) -> None:
        """Take a socket out of a course's watchers, or off its way in; one that is neither stays out."""
        courses = self._by_socket.get(sid, {})
        if (course := courses.pop(course_id, None)) is None:
            return
        if not courses:
            del self._by_socket[sid]
        course.entering.pop(sid, None)
        course.watchers.pop(sid, None)

    def leave_all(self, sid: str) -> None:
        """Forget a socket that has gone."""
        for course in self._by_socket.pop(sid, {}).values():
            course.entering.pop(sid, None)
            course.watchers.pop(sid, None)

    def turned(self, course: Watched, turn: Turn, seq: int) -> None:
        """Tell that a session is on or over, once: the saga and the sweep of the outbox repeat, and replicas overtake."""
        if seq <= course.heard_of(turn.session_id):
            return
        course.turns += 1
        course.recent.append(Heard(course.turns, seq, turn))
        unaware = [watcher.member for watcher in course.watchers.values() if watcher.learns(turn)]
        if unaware:
            self._tell_turn(turn, unaware)

    def relist(self, course: Watched, active: Sequence[ActiveSession]) -> None:
        """Tell which sessions are on to the watchers who take it to be otherwise; they have missed a turn."""
        unaware = course.unaware(active)
        if unaware:
            self._tell_active(course.course_id, active, [watcher.member for watcher in unaware])
            for watcher in unaware:
                watcher.on = {session.session_id for session in active}
