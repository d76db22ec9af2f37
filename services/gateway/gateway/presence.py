"""Who is connected: which students who joined a roll have a socket now, on any gateway. It lives in Redis and can be lost.

Every gateway says again and again which sockets it hosts, and keeps a key of its own alive: what it said counts while that
key lives. When a student's last socket has been gone for a while, and there is no other on any gateway, the gateway that saw
it go tells all of them, who tell their staff. Only who asks who is connected waits for Redis.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Final, TypeVar

import structlog
from msgspec import Struct, json
from redis.asyncio import Redis

from shared.clock import Clock, rfc3339
from shared.errors import Unavailable
from shared.live import AWAY, Listener, Names, publish_live, uncancelled
from shared.messages import Time

log = structlog.get_logger()
T = TypeVar("T")

GRACE_SECONDS: Final = 5.0
"""How long a student may be without a socket before anybody is told: a reconnect takes less."""
ALIVE_SECONDS: Final = 25
BEAT_SECONDS: Final = 4.0
"""How often a gateway says that it lives, and looks who does not: so a dead one is noticed within 30 s."""
REPEAT_SECONDS: Final = 8.0
KEPT_SECONDS: Final = 60
"""How long Redis keeps what nobody repeats."""
_GATHER_SECONDS: Final = 0.05
_AGAIN_SECONDS: Final = 1.0
_CHUNK: Final = 500

# Only one gateway may tell of a student: whoever removes what it goes by.
_REMOVE_FIELDS: Final = """
local removed = {}
for _, field in ipairs(ARGV) do
    if redis.call('HDEL', KEYS[1], field) == 1 then removed[#removed + 1] = field end
end
return removed
"""
_REMOVE_IF_SAME: Final = """
local removed = {}
for i = 1, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
        redis.call('HDEL', KEYS[1], ARGV[i])
        removed[#removed + 1] = ARGV[i]
    end
end
return removed
"""


class Left(Struct, frozen=True):
    """A student who has no socket any more; what gateways tell each other on a presence channel is a list of these."""

    student_id: str
    left_at: Time


def decode_left(body: bytes) -> list[Left]:
    """Read one message of a presence channel; raise msgspec.MsgspecError when it is none."""
    return json.decode(body, type=list[Left])


@dataclass(slots=True, eq=False)
class _Departure:
    """A student's last socket here has gone; `stamp` is what no other departure bears."""

    left_at: Time
    due: float
    stamp: str
    said: bool = False


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
        self._here: dict[str, dict[str, set[str]]] = {}
        """Sockets by session and student: the truth about this gateway."""
        self._by_socket: dict[str, dict[str, str]] = {}
        self._unsaid: dict[tuple[str, str], bool] = {}
        """What Redis has not been told: of (session, field), whether it is there."""
        self._departures: dict[tuple[str, str], _Departure] = {}
        self._numbers = count(1)
        self._peers: frozenset[str] = frozenset()
        self._beat_at = self._repeat_at = 0.0
        self._wake = asyncio.Event()
        self._handing_over = False
        listener.after_reconnecting(self._say_all_again)

    def enter(self, session_id: str, student_id: str, sid: str) -> None:
        """Count a socket of a student who has joined. Redis hears of it a moment later; repeats are free."""
        sessions = self._by_socket.setdefault(sid, {})
        if session_id in sessions:
            return
        sessions[session_id] = student_id
        self._here.setdefault(session_id, {}).setdefault(student_id, set()).add(sid)
        self._departures.pop((session_id, student_id), None)
        self._say(session_id, student_id, sid, here=True)

    def leave(self, session_id: str, sid: str, *, at_once: bool = False) -> bool:
        """Count a socket out; staff hear of it if it was the student's last, after a grace or `at_once`. False: not in."""
        student_id = self._by_socket.get(sid, {}).pop(session_id, None)
        if student_id is None:
            return False
        students = self._here[session_id]
        students[student_id].discard(sid)
        if not students[student_id]:
            del students[student_id]
            due = asyncio.get_running_loop().time() + (0 if at_once else GRACE_SECONDS)
            stamp = f"{self._id} {next(self._numbers)}"
            self._departures[session_id, student_id] = _Departure(rfc3339(self._clock()), due, stamp)
        if not students:
            del self._here[session_id]
        self._say(session_id, student_id, sid, here=False)
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
            return (await uncancelled(self._read({session_id})))[session_id]
        except AWAY as error:
            raise Unavailable(f"Redis: {error}") from error

    async def run(self) -> None:
        """Tell Redis, for ever; whoever starts this guards it."""
        while True:
            await self._something_to_do()
            try:
                await uncancelled(self._keep())
            except (*AWAY, Unavailable) as error:
                log.warning("presence.untold", reason=str(error))
                await asyncio.sleep(_AGAIN_SECONDS)
            # Whatever comes meanwhile goes together: a thousand joins in a second are twenty round trips.
            await asyncio.sleep(_GATHER_SECONDS)

    async def _something_to_do(self) -> None:
        at = min([self._beat_at, *(departure.due for departure in self._departures.values())])
        try:
            async with asyncio.timeout_at(at):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _keep(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._beat_at <= now:
            await self._beat()
            self._beat_at = now + BEAT_SECONDS
        if self._repeat_at <= now:
            for session_id, students in self._here.items():
                for student_id, sids in students.items():
                    self._unsaid |= {(session_id, _field(student_id, sid)): True for sid in sids}
            self._repeat_at = now + REPEAT_SECONDS
        await self._say_unsaid()
        await self._settle()

    async def _beat(self) -> None:
        """Stay alive, and see which other gateways have died since: nobody else tells of those who went with them."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(self._names.gateway(self._id), 1, ex=ALIVE_SECONDS)
        pipeline.hset(self._names.gateways(), self._id, "")
        pipeline.expire(self._names.gateways(), KEPT_SECONDS)
        pipeline.hkeys(self._names.gateways())
        known = {peer.decode() for peer in (await pipeline.execute())[-1]} - {self._id}
        alive = await self._alive(known)
        if dead := known - alive:
            await _awaited(self._redis.hdel(self._names.gateways(), *dead))
        if self._peers - alive:
            await self._read(set(self._staffed()))
        self._peers = alive

    async def _say_all_again(self) -> None:
        self._beat_at = self._repeat_at = 0.0
        self._wake.set()

    def _say(self, session_id: str, student_id: str, sid: str, *, here: bool) -> None:
        self._unsaid[session_id, _field(student_id, sid)] = here
        self._wake.set()

    async def _say_unsaid(self) -> None:
        """Tell Redis what it does not know; what could not be told stays unsaid."""
        unsaid, self._unsaid = self._unsaid, {}
        departures = {key: departure for key, departure in self._departures.items() if not departure.said}
        try:
            for chunk in _chunks(unsaid.items()):
                await self._tell(dict(chunk), {})
            for leaving in _chunks(departures.items()):
                await self._tell({}, dict(leaving))
        except BaseException:
            self._unsaid = unsaid | self._unsaid
            raise

    async def _tell(self, fields: dict[tuple[str, str], bool], departures: dict[tuple[str, str], _Departure]) -> None:
        there, gone, stamps = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list), defaultdict[str, Any](dict)
        for (session_id, name), here in fields.items():
            (there if here else gone)[session_id].append(name)
        for (session_id, student_id), departure in departures.items():
            stamps[session_id][student_id] = departure.stamp
        pipeline = self._redis.pipeline(transaction=False)
        for session_id, names in there.items():
            pipeline.hset(self._names.presence(session_id), mapping=dict.fromkeys(names, self._id))
            pipeline.expire(self._names.presence(session_id), KEPT_SECONDS)
            pipeline.hdel(self._names.departures(session_id), *map(_student, names))
        for session_id, names in gone.items():
            pipeline.hdel(self._names.presence(session_id), *names)
        for session_id, mapping in stamps.items():
            pipeline.hset(self._names.departures(session_id), mapping=mapping)
            pipeline.expire(self._names.departures(session_id), KEPT_SECONDS)
        await pipeline.execute()
        for departure in departures.values():
            departure.said = True

    async def _settle(self) -> None:
        """Tell of the students who have been gone long enough and are nowhere else."""
        now = asyncio.get_running_loop().time()
        due = defaultdict[str, dict[str, _Departure]](dict)
        for (session_id, student_id), departure in self._departures.items():
            if departure.said and departure.due <= now:
                due[session_id][student_id] = departure
        online = await self._read(due.keys())
        for session_id, gone in due.items():
            claims = [word for who, each in gone.items() if who not in online[session_id] for word in (who, each.stamp)]
            claimed = await self._script(_REMOVE_IF_SAME, self._names.departures(session_id), claims)
            # Who came back here meanwhile has no departure any more.
            still = {who for who, each in gone.items() if self._departures.get((session_id, who)) is each}
            await self._tell_gateways(session_id, [Left(who, gone[who].left_at) for who in claimed if who in still])
            for student_id in still:
                del self._departures[session_id, student_id]

    async def _read(self, session_ids: Collection[str]) -> dict[str, Collection[str]]:
        """Read who is connected, and clear away what gateways have said that are no more."""
        pipeline = self._redis.pipeline(transaction=False)
        for session_id in session_ids:
            pipeline.hgetall(self._names.presence(session_id))
        hashes = await pipeline.execute() if session_ids else []
        said = {
            session_id: {field.decode(): owner.decode() for field, owner in fields.items()}
            for session_id, fields in zip(session_ids, hashes, strict=True)
        }
        alive = await self._alive({owner for fields in said.values() for owner in fields.values()} - {self._id})
        online: dict[str, Collection[str]] = {}
        for session_id, fields in said.items():
            # Of its own sockets a gateway knows best.
            connected = {_student(field) for field, owner in fields.items() if owner in alive}
            online[session_id] = connected = connected | self._here.get(session_id, {}).keys()
            orphans = [field for field, owner in fields.items() if owner not in alive and owner != self._id]
            removed = await self._script(_REMOVE_FIELDS, self._names.presence(session_id), orphans)
            left = sorted({_student(field) for field in removed} - connected)
            await self._tell_gateways(session_id, [Left(student, rfc3339(self._clock())) for student in left])
        return online

    async def _alive(self, gateway_ids: Collection[str]) -> frozenset[str]:
        pipeline = self._redis.pipeline(transaction=False)
        for gateway_id in gateway_ids:
            pipeline.exists(self._names.gateway(gateway_id))
        found = await pipeline.execute() if gateway_ids else []
        return frozenset(gateway_id for gateway_id, alive in zip(gateway_ids, found, strict=True) if alive)

    async def _script(self, script: str, key: str, arguments: Sequence[str]) -> list[str]:
        """Run a script that returns which of its arguments it removed."""
        removed: list[str] = []
        for chunk in _chunks(arguments):
            removed += [field.decode() for field in await _awaited(self._redis.eval(script, 1, key, *chunk))]
        return removed

    async def _tell_gateways(self, session_id: str, left: Sequence[Left]) -> None:
        if left:
            await publish_live(self._redis, [(self._names.presence_channel(session_id), json.encode(left))])


async def _awaited(command: Any) -> Any:
    """Await a command whose type the library leaves open."""
    return await command


def _field(student_id: str, sid: str) -> str:
    # No id has a blank in it.
    return f"{student_id} {sid}"


def _student(field: str) -> str:
    return field.partition(" ")[0]


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Cut what goes to Redis into pieces that do not hold up the loop. Even, so that pairs stay together."""
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk
