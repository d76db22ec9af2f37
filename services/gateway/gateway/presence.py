"""Who is connected: which students who joined a roll have a socket now, on any gateway. It lives in Redis and can be lost.

A session's hash has a field for each gateway, with all that it has to say of the session. Every gateway says it again and
again, and keeps a key of its own alive: what it said counts while that key lives. When a student's last socket has been gone
for a while, and there is no other on any gateway, the gateway that saw the last one go tells all of them, who tell their
staff. Only who asks who is connected waits for Redis.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from heapq import heapify, heappop, heappush
from itertools import takewhile
from typing import Any, Final, NamedTuple

import structlog
from msgspec import MsgspecError, json
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from gateway.statements import Moved, Statement, decode_statement, must_tell
from shared.clock import Clock, rfc3339
from shared.errors import Unavailable
from shared.live import AWAY, Listener, Names, publish_live, uncancelled
from shared.messages import Time

log = structlog.get_logger()

GRACE_SECONDS: Final = 5.0
"""How long a student may be without a socket before anybody is told: a reconnect takes less."""
ALIVE_SECONDS: Final = 25
BEAT_SECONDS: Final = 4.0
"""How often a gateway says that it lives, and looks who does not: so a dead one is noticed within 30 s."""
REPEAT_SECONDS: Final = 8.0
KEPT_SECONDS: Final = 60
"""How long Redis keeps what nobody repeats."""
TOLD_SECONDS: Final = 40.0
"""How long a gateway says of whom it has told: a gateway that died knew perhaps of an earlier departure of theirs."""
_GATHER_SECONDS: Final = 0.05
_LONGEST_GATHER_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 1.0
_CHUNK: Final = 100
_SETTLED_AT_ONCE: Final = 2000
"""How many departures are settled in one go: a school that goes home would hold up everybody else for tens of milliseconds."""

# What it takes of the loop to ask Redis once, and for each command and byte, as measured: so long a pause follows that all
# of it stays below this share.
_SHARE: Final = 0.01
_TRIP_SECONDS: Final = 0.3e-3
_COMMAND_SECONDS: Final = 15e-6
_BYTE_SECONDS: Final = 7e-9


class _Due(NamedTuple):
    """When a departure is to be settled, by the loop's clock."""

    at: float
    session_id: str
    student_id: str
    left_at: Time


class Presence:
    """What this gateway says of its own sockets, and what it reads of everybody's."""

    def __init__(
        self,
        redis: Redis,
        names: Names,
        listener: Listener,
        gateway_id: str,
        clock: Clock,
        staffed: Callable[[], Collection[str]],
    ) -> None:
        """`staffed` lists the sessions whose staff listen here: they are told of those who go with another gateway."""
        self._redis = redis
        self._names = names
        self._id = gateway_id
        self._clock = clock
        self._staffed = staffed
        self._by_socket = defaultdict[str, dict[str, str]](dict)
        """Students by socket and session."""
        self._own: dict[str, Statement] = {}
        """What is to be said of each session: the truth about this gateway."""
        self._changed: set[str] = set()
        """The sessions of which Redis has not been told all."""
        self._back: defaultdict[str, set[str]] = defaultdict(set)
        """Of each session, who has a socket again: staff may have been told that they left."""
        self._due: list[_Due] = []
        """A heap. What it has of those who came back since is passed over."""
        self._peers: frozenset[str] = frozenset()
        self._beat_at = self._repeat_at = 0.0
        self._wake = asyncio.Event()
        self._spent_seconds = 0.0
        self._handing_over = False
        self._lives = False
        """Whether Redis has ever been told that this gateway lives."""
        listener.after_reconnecting(self._say_all_again)

    def enter(self, session_id: str, student_id: str, sid: str, *, again: bool = False) -> None:
        """Count a socket of a student who has joined. Redis hears of it a moment later; repeats are free.

        Who had joined before comes `again`: staff who were told that they left are told that they are back.
        """
        sessions = self._by_socket[sid]
        if session_id in sessions:
            return
        sessions[session_id] = student_id
        own = self._own_of(session_id)
        own.here[student_id] = own.here.get(student_id, 0) + 1
        own.gone.pop(student_id, None)
        own.told.pop(student_id, None)
        if again and own.here[student_id] == 1:
            self._back[session_id].add(student_id)

    def leave(self, session_id: str, sid: str, *, at_once: bool = False) -> bool:
        """Count a socket out; staff hear of it if it was the student's last, after a grace or `at_once`. False: not in."""
        student_id = self._by_socket.get(sid, {}).pop(session_id, None)
        if student_id is None:
            return False
        own = self._own_of(session_id)
        own.here[student_id] -= 1
        if not own.here[student_id]:
            del own.here[student_id]
            self._depart(session_id, student_id, rfc3339(self._clock()), 0 if at_once else GRACE_SECONDS)
        return True

    def leave_all(self, sid: str) -> None:
        """Count out a socket that has gone."""
        if self._handing_over:
            return
        for session_id in list(self._by_socket.get(sid, ())):
            self.leave(session_id, sid)
        self._by_socket.pop(sid, None)

    def hand_over(self) -> None:
        """Say no more of who goes, because this gateway does: nobody would be left to tell of them after their grace.

        What it has said stays, so the other gateways find those who did not come to them as they find a dead gateway's.
        """
        self._handing_over = True

    async def online(self, session_id: str) -> Collection[str]:
        """Tell which students of a session are connected to any gateway; raise Unavailable without Redis."""
        try:
            others = (await uncancelled(self._read({session_id})))[session_id]
        except AWAY as error:
            raise Unavailable(f"Redis: {error}") from error
        # Of its own sockets a gateway knows best.
        own = self._own.get(session_id, Statement())
        return own.here.keys() | {student_id for said in others.values() for student_id in said.here}

    async def run(self) -> None:
        """Tell Redis, for ever; whoever starts this guards it. Begun again, it says all again: nobody knows what was said."""
        await self._say_all_again()
        while True:
            await self._something_to_do()
            self._spent_seconds = 0.0
            try:
                await uncancelled(self._keep())
            except (*AWAY, Unavailable) as error:
                log.warning("presence.untold", reason=str(error))
                await self._say_all_again()
                await asyncio.sleep(_AGAIN_SECONDS)
            # Whatever comes meanwhile goes together: a thousand joins in a second are twenty round trips, or fewer where
            # so much goes each time that the loop would be busy with it.
            await asyncio.sleep(min(max(_GATHER_SECONDS, self._spent_seconds / _SHARE), _LONGEST_GATHER_SECONDS))

    async def _something_to_do(self) -> None:
        at = min(self._beat_at, self._due[0].at) if self._due else self._beat_at
        with suppress(TimeoutError):
            async with asyncio.timeout_at(at):
                await self._wake.wait()
        self._wake.clear()

    async def _keep(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._beat_at <= now:
            self._beat_at = now + BEAT_SECONDS
            await self._beat()
        if self._repeat_at <= now:
            self._repeat_at = now + REPEAT_SECONDS
            self._forget_told()
            # Whom it has merely told of Redis keeps for longer than that matters.
            self._changed |= {session_id for session_id, own in self._own.items() if own.here or own.gone or not own}
        # Of two gateways that settle departures of one student, one must see the other's: so each says its own, then reads.
        await self._say_changed()
        await self._tell_back()
        while self._due and self._due[0].at <= now:
            if due := self._take_due(now):
                await self._settle(due)
                # Whoever finds this gateway dead must not tell again.
                await self._say_changed()

    async def _beat(self) -> None:
        """Stay alive, and see which other gateways have died since: nobody else tells of those who went with them."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.exists(self._names.gateway(self._id))
        pipeline.set(self._names.gateway(self._id), 1, ex=ALIVE_SECONDS)
        pipeline.hset(self._names.gateways(), self._id, "")
        pipeline.expire(self._names.gateways(), KEPT_SECONDS)
        pipeline.hkeys(self._names.gateways())
        lived, *_, peers = await self._ask(pipeline)
        if self._lives and not lived:
            self._all_are_back()
        self._lives = True
        known = {peer.decode() for peer in peers} - {self._id}
        alive = await self._alive(known)
        if dead := known - alive:
            pipeline.hdel(self._names.gateways(), *dead)
            await self._ask(pipeline)
        if (self._peers | known) - alive:
            await self._read(set(self._staffed()))
        self._peers = alive

    async def _say_all_again(self) -> None:
        """Begin anew with a Redis that may have lost everything. So do the others: each departure gets another grace."""
        self._beat_at = self._repeat_at = 0.0
        self._changed |= self._own.keys()
        self._all_are_back()
        at = asyncio.get_running_loop().time() + GRACE_SECONDS
        self._due = [
            _Due(at, session_id, student_id, left_at)
            for session_id, own in self._own.items()
            for student_id, left_at in own.gone.items()
        ]
        heapify(self._due)
        self._wake.set()

    def _all_are_back(self) -> None:
        """Have it said of all who are here: others may have taken this gateway for dead, and told that they left."""
        for session_id, own in self._own.items():
            self._back[session_id] |= own.here.keys()

    def _own_of(self, session_id: str) -> Statement:
        """Return what is to be said of a session, for a change."""
        own = self._own.get(session_id)
        if own is None:
            own = self._own[session_id] = Statement()
        self._changed.add(session_id)
        self._wake.set()
        return own

    def _depart(self, session_id: str, student_id: str, left_at: Time, seconds: float) -> None:
        """Note a departure that is to be settled after a while."""
        self._own_of(session_id).gone[student_id] = left_at
        self._back[session_id].discard(student_id)
        heappush(self._due, _Due(asyncio.get_running_loop().time() + seconds, session_id, student_id, left_at))

    def _take_due(self, now: float) -> dict[str, dict[str, Time]]:
        """Take out whose time has come, by session and student, the first of many; they must be settled now."""
        due = defaultdict[str, dict[str, Time]](dict)
        for _ in range(_SETTLED_AT_ONCE):
            if not self._due or self._due[0].at > now:
                break
            _, session_id, student_id, left_at = heappop(self._due)
            if self._is_gone(session_id, student_id, left_at):
                due[session_id][student_id] = left_at
        return due

    def _is_gone(self, session_id: str, student_id: str, left_at: Time) -> bool:
        own = self._own.get(session_id)
        return own is not None and own.gone.get(student_id) == left_at

    def _forget_told(self) -> None:
        before = rfc3339(self._clock() - timedelta(seconds=TOLD_SECONDS))
        for own in self._own.values():
            # Oldest first, as they were told.
            for student_id, _ in list(takewhile(lambda item: item[1] <= before, own.told.items())):
                del own.told[student_id]

    async def _say_changed(self) -> None:
        """Tell Redis what it does not know. Where that fails, all is said again."""
        changed, self._changed = self._changed, set()
        for session_ids in _chunks(changed):
            pipeline = self._redis.pipeline(transaction=False)
            # Nobody may see what is said here without the key by which it counts, though Redis has just lost it.
            pipeline.set(self._names.gateway(self._id), 1, ex=ALIVE_SECONDS)
            for session_id in session_ids:
                key, own = self._names.presence(session_id), self._own[session_id]
                if own:
                    body = json.encode(own)
                    self._spent_seconds += len(body) * _BYTE_SECONDS
                    pipeline.hset(key, self._id, body)
                    pipeline.expire(key, KEPT_SECONDS)
                else:
                    pipeline.hdel(key, self._id)
            await self._ask(pipeline)
            for session_id in session_ids:
                if not self._own[session_id] and session_id not in self._changed:
                    del self._own[session_id]

    async def _tell_back(self) -> None:
        """Tell of those who are back, behind what says that they are here: nobody tells that they left any more."""
        back, self._back = self._back, defaultdict(set)
        messages = [
            (
                self._names.presence_channel(session_id),
                json.encode([Moved(student_id, None) for student_id in sorted(students)]),
            )
            for session_id, students in back.items()
            if students
        ]
        self._spent_seconds += sum(len(body) * _BYTE_SECONDS for _, body in messages)
        try:
            await publish_live(self._redis, messages)
        except Unavailable:
            for session_id, students in back.items():
                self._back[session_id] |= students
            raise

    async def _settle(self, due: Mapping[str, Mapping[str, Time]]) -> None:
        """Tell of the students who have been gone long enough and are nowhere else, where no other gateway does."""
        told_at = rfc3339(self._clock())
        left = {
            session_id: [
                Moved(student_id, left_at)
                for student_id, left_at in due[session_id].items()
                # Whoever came back here meanwhile is gone no more.
                if self._is_gone(session_id, student_id, left_at) and must_tell(self._id, student_id, left_at, others)
            ]
            for session_id, others in (await self._read(due.keys())).items()
        }
        messages = [(self._names.presence_channel(session_id), json.encode(news)) for session_id, news in left.items() if news]
        await publish_live(self._redis, messages)
        for session_id, settled in due.items():
            own, told = self._own_of(session_id), {each.student_id for each in left[session_id]}
            for student_id, left_at in settled.items():
                if own.gone.get(student_id) == left_at:
                    del own.gone[student_id]
                    if student_id in told:
                        own.told.pop(student_id, None)
                        own.told[student_id] = told_at

    async def _read(self, session_ids: Collection[str]) -> dict[str, dict[str, Statement]]:
        """Read what the other living gateways say of sessions, and clear away what those have said that are no more."""
        said: dict[str, dict[str, Statement]] = {}
        for chunk in _chunks(session_ids):
            pipeline = self._redis.pipeline(transaction=False)
            for session_id in chunk:
                pipeline.hgetall(self._names.presence(session_id))
            for session_id, fields in zip(chunk, await self._ask(pipeline), strict=True):
                self._spent_seconds += sum(map(len, fields.values())) * _BYTE_SECONDS
                by_gateway = {field.decode(errors="replace"): body for field, body in fields.items()}
                by_gateway.pop(self._id, None)
                said[session_id] = {id: _read_statement(session_id, id, body) for id, body in by_gateway.items()}
        alive = await self._alive({gateway_id for others in said.values() for gateway_id in others})
        dead = [(session_id, id) for session_id, others in said.items() for id in others if id not in alive]
        if dead:
            await self._clear_away(said, dead)
        return said

    async def _clear_away(self, said: dict[str, dict[str, Statement]], dead: Sequence[tuple[str, str]]) -> None:
        """Take out what dead gateways said; only who removed it from Redis takes over what is to be told of their students."""
        pipeline = self._redis.pipeline(transaction=False)
        for session_id, gateway_id in dead:
            pipeline.hdel(self._names.presence(session_id), gateway_id)
        removed = await self._ask(pipeline)
        lost = [(session_id, gateway_id, said[session_id].pop(gateway_id)) for session_id, gateway_id in dead]
        for (session_id, gateway_id, statement), was_there in zip(lost, removed, strict=True):
            if was_there:
                self._take_over(session_id, gateway_id, statement, said[session_id])

    def _take_over(self, session_id: str, gateway_id: str, lost: Statement, others: Mapping[str, Statement]) -> None:
        """See off the students of a gateway that is no more, as if they had left here."""
        own = self._own.get(session_id, Statement())
        said = {self._id: own, **others}
        for student_id, left_at in (dict.fromkeys(lost.here, rfc3339(self._clock())) | lost.gone).items():
            if student_id not in own.gone and must_tell(gateway_id, student_id, left_at, said):
                # A gateway where they left as well may yet tell of it, or leave it to the one that is no more.
                waits = any(student_id in each.gone for each in others.values())
                self._depart(session_id, student_id, left_at, GRACE_SECONDS if waits else 0)

    async def _alive(self, gateway_ids: Collection[str]) -> frozenset[str]:
        pipeline = self._redis.pipeline(transaction=False)
        for gateway_id in gateway_ids:
            pipeline.exists(self._names.gateway(gateway_id))
        found = await self._ask(pipeline) if gateway_ids else []
        return frozenset(gateway_id for gateway_id, alive in zip(gateway_ids, found, strict=True) if alive)

    async def _ask(self, pipeline: Pipeline) -> list[Any]:
        self._spent_seconds += _TRIP_SECONDS + len(pipeline) * _COMMAND_SECONDS
        return await pipeline.execute()


def _read_statement(session_id: str, gateway_id: str, body: bytes) -> Statement:
    """Read a gateway's field; one that cannot be read says nothing."""
    try:
        return decode_statement(body)
    except MsgspecError as error:
        log.error("presence.malformed_field", session_id=session_id, gateway_id=gateway_id, reason=type(error).__name__)
        return Statement()


def _chunks(session_ids: Iterable[str]) -> Iterator[list[str]]:
    """Cut what goes to Redis into pieces that do not hold up the loop."""
    every = list(session_ids)
    return (every[at : at + _CHUNK] for at in range(0, len(every), _CHUNK))
