"""How the tests of sockets ask: one namespace of a gateway on a real Valkey, before services that say what a test wants."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import isawaitable
from typing import Any, TypeVar

import msgspec

from gateway.auth import Tokens, mint
from gateway.calls import Told
from gateway.commands import Commands
from gateway.door import Door
from gateway.engine.server import Reply, Spoken
from gateway.joins import Joins
from gateway.keys import Keys, Secret
from gateway.requests import SECONDS, Joining
from gateway.sockets import Attendance
from gateway.usage import Usage
from shared.errors import Refused
from shared.messages import ActiveSessions, Actor, Course, Record, Role, RollJoined, RollRead, RollSynced
from tests.contract.room_events import COURSE, NINE, SID, a_session, active, statistics, whole_roll
from tests.contract.room_talk import Ear, World

W = TypeVar("W")
SECRET = "a secret of at least thirty-two bytes"
ABOUT = {"session_id": SID}


class AQuestion:
    """In place of `Question`."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._ask = ask

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._ask().__await__()

    def begin(self, tell: Callable[[Any, Any], None], who: Any) -> None:
        async def ask() -> None:
            try:
                tell(who, await self._ask())
            except Refused as refused:
                tell(who, refused)

        self._asking = asyncio.create_task(ask())

    async def explain(self) -> Refused:
        return Refused("session_not_found")


class AReply(Reply):
    """The way back to an ear, which keeps the acknowledgement."""

    given: asyncio.Future[Any] = msgspec.field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def give(self, answer: Any, event: str | None = None) -> None:
        super().give(answer, event)
        self.given.set_result(msgspec.json.decode(msgspec.json.encode(answer)))

    def drop(self) -> None:
        super().drop()
        self.given.set_result(None)


class Services:
    """In place of `Requests`: answers what each test says, or else as two good services would."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.joined: set[str] = set()
        self.behind = 0
        """How many numbers have been taken since a join, or who reads a roll, is answered."""
        self.received_at: datetime | None = None
        self.said: list[tuple[Any, ...]] = []
        self.meanwhile: Callable[[], Awaitable[Any]] | None = None
        """Happens while the next command is being done."""

    def __getattr__(self, name: str) -> Callable[..., "AQuestion"]:
        async def ask(*arguments: Any, **options: Any) -> Any:
            self.said.append((name, *arguments))
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                await meanwhile()
            answer = getattr(self, f"_{name}")(*arguments, **options)
            return await answer if isawaitable(answer) else answer

        return lambda *arguments, **options: AQuestion(partial(ask, *arguments, **options))

    def received(self, at: datetime) -> "Services":
        self.received_at = at
        return self

    def begin_joins(self, joins: Sequence[Joining[W]], tell: Callable[[Told[W, RollJoined]], None]) -> None:
        for actor, session_id, command_id, received_at, who in joins:
            self.received_at = received_at
            self.join(actor, session_id, command_id).begin(lambda who, result: tell([(who, result)]), who)

    def seconds_left(self) -> float:
        return SECONDS

    def _join(self, actor: Actor, session_id: str, command_id: str | None) -> RollJoined:
        self.joined.add(actor.id)
        return RollJoined(
            session_id=session_id,
            status="present",
            joined_at=NINE,
            seq=2,
            roll_seq=self.world.seq - self.behind,
            course_id=COURSE,
        )

    def _explain_no_roll(self, actor: Actor, session_id: str, *, for_staff: bool) -> Refused:
        return Refused("session_not_found")

    def _sync(self, actor: Actor, session_id: str, since_seq: int | None, command_id: str | None = None) -> RollSynced:
        if actor.role == "student" and not actor.id.startswith("s"):
            raise Refused("not_enrolled")
        own = tuple(
            Record(
                session_id=session_id,
                student_id=actor.id,
                student_name="x",
                status="present",
                remarks=None,
                source="self",
                marked_by=None,
                marked_at=None,
                joined_at=NINE if actor.id in self.joined else None,
                seq=2,
            )
            for _ in range(since_seq is None or since_seq < 2)
        )
        as_staff = actor.role != "student"
        records = whole_roll(self.world.seq).records if as_staff else own
        return RollSynced(
            mode="whole" if since_seq is None else "changes",
            as_staff=as_staff,
            joined=actor.id in self.joined,
            session=a_session(session_id),
            records=records,
            statistics=statistics(self.world.seq),
            seq=self.world.seq,
        )

    def _read_roll(self, actor: Actor, session_id: str, command_id: str | None = None) -> RollRead:
        if actor.role == "student":
            raise Refused("forbidden")
        return whole_roll(self.world.seq - self.behind)

    def _start(self, actor: Actor, session_id: str, command_id: str | None = None) -> RollRead:
        return whole_roll(self.world.seq)

    def _reopen(self, actor: Actor, session_id: str, reason: str, command_id: str | None = None) -> RollRead:
        return whole_roll(self.world.seq)

    def _read_course(self, actor: Actor, course_id: str) -> Course:
        raise Refused("course_not_found")

    def _read_active_sessions(self, course_id: str) -> ActiveSessions:
        return ActiveSessions(items=active(SID))


class Gateway:
    """One namespace of a gateway, whose clock the test holds."""

    def __init__(self, world: World, keys: Keys | None = None) -> None:
        self.world = world
        self.services = Services(world)
        self.time = datetime.now(UTC).replace(microsecond=0)
        tokens = Tokens(keys or Secret(SECRET))
        self.usage = Usage(world.redis, world.names)
        self.door = Door(tokens, self.usage)
        requests: Any = self.services
        joins = Joins(requests, world.rooms, world.courses, world.presence, lambda: self.time)
        commands = Commands(tokens, requests, world.rooms, world.courses, world.watchers, world.presence, joins)
        self.attendance = Attendance(
            "/",
            world.manager,
            world.errands,
            self.door,
            commands.table(),
            world.rooms,
            world.watchers,
            world.presence,
            lambda: self.time,
        )
        world.server.register_namespace(self.attendance)

    async def a_caller(self, user_id: str = "s2", role: Role = "student", *, seconds: int = 3600) -> Ear:
        """Connect somebody whose token lasts that long from now."""
        ear = await self.world.a_socket("staff" if role != "student" else "student", user_id, role=role)
        await self.attendance.trigger_event("connect", ear.member.sid, {}, {"token": self.token(user_id, role, seconds)})
        return ear

    def token(self, user_id: str = "s2", role: Role = "student", seconds: int = 3600) -> str:
        return mint(SECRET, subject=user_id, role=role, name="x", lifetime=timedelta(seconds=seconds), now=self.time)

    async def ask(self, ear: Ear, event: str, **payload: Any) -> Any:
        """Have a command done as one that has come; None where nobody is answered."""
        return await self.ask_in(Spoken(event, [payload], len(msgspec.json.encode(payload))), ear)

    async def ask_in(self, spoken: Spoken, ear: Ear) -> Any:
        """Have done what was said in these words, which others may say as well."""
        link: Any = ear
        link.under_way += 1
        reply = AReply(link, ear.member.namespace, "", ear.member.sid)
        self.attendance.begin(reply, spoken)
        return await reply.given


async def online(world: World) -> set[str]:
    """Which students of the session are connected."""
    return set(await world.presence.online(SID))
