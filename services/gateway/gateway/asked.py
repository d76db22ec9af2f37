"""What a socket asks: the socket and its turns, one command on its way, and what a client may send under one name."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from msgspec import Struct

from gateway.auth import User
from gateway.engine.fanout import Connection
from gateway.engine.server import Reply
from gateway.payloads import MAX_PAYLOAD_BYTES, CommandPayload
from gateway.requests import Question
from gateway.room import Kind, Member, Room
from gateway.views import View
from shared.errors import Refused
from shared.messages import Actor


@dataclass(slots=True)
class Socket:
    """One connection to one namespace, and the commands it has under way for each session or course."""

    sid: str
    namespace: str
    link: Connection
    user: User
    until: datetime
    """When it is cut off, unless its token is refreshed."""
    gone: bool = False
    turns: dict[str, list[asyncio.Future[None]] | None] = field(default_factory=dict)
    """For each session or course with a command under way, those that wait behind it; None where none does."""

    @property
    def actor(self) -> Actor:
        """Who sits at it."""
        return self.user.actor

    def member(self, kind: Kind) -> Member:
        """Make a listener of it."""
        actor = self.user.actor
        return Member(self.sid, self.namespace, actor.id, actor.role, kind, self.link)

    def take_turn(self, about: str) -> asyncio.Future[None] | None:
        """Take the place of one more command about something: None when it may begin, else what it must wait for.

        Commands about the same thing are done in the order sent; those about other things overlap.
        """
        if about not in self.turns:
            self.turns[about] = None
            return None
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.turns[about] = waiting = self.turns[about] or []
        waiting.append(turn)
        return turn

    def pass_turn(self, about: str) -> None:
        """Let the next command about the same thing begin."""
        waiting = self.turns[about]
        while waiting:
            turn = waiting.pop(0)
            if not turn.done():
                turn.set_result(None)
                return
        del self.turns[about]


class Asked(Struct):
    """One command a socket has sent: what it says and is about, when it came, and the way back."""

    socket: Socket
    payload: Any
    about: str
    received_at: datetime
    command: "Command"
    reply: Reply
    room: Room | None = None
    """The room that is held for it until it is answered."""

    @property
    def actor(self) -> Actor:
        """Who asks."""
        return self.socket.user.actor

    def over(self) -> None:
        """Let go of the room that was held, and pass the turn on."""
        if self.room is not None:
            self.room.holds -= 1
        self.socket.pass_turn(self.about)


class Answer(Struct, frozen=True):
    """What the caller is acknowledged, and the event that carries the same to them; None where there is none."""

    event: str | None
    view: View


Refuse = Callable[[Asked, Refused], None]
"""Refuses a command, and passes its turn on."""


class Together(Protocol):
    """Asks what comes in crowds, answers it, and lets in who asked."""

    def ask(self, asked: Asked, refuse: Refuse) -> None:
        """Ask what has its turn and its room; what is not done is handed to `refuse`."""

    async def explain(self, asked: Asked) -> Refused:
        """Ask why there is no roll, for what was refused with `NO_ROLL`."""


class Command(Struct, frozen=True):
    """What a client may send under one name: its shape and its size, and what it does.

    Most commands are one `question` to a service, the `answer` made of its result and, for those that listen to the roll from
    then on, who is to be let in: these need no task. The others `do` what they do. All raise Refused. What comes in crowds is
    asked, answered and let in `together` instead.
    """

    payload: type[CommandPayload]
    name: str
    question: Callable[[Asked], Question[Any]] | None = None
    answer: Callable[[Asked, Any], Answer] | None = None
    let_in: Callable[[Asked, Room, Any], None] | None = None
    do: Callable[[Asked], Awaitable[Answer]] | None = None
    together: Together | None = None
    max_bytes: int = MAX_PAYLOAD_BYTES

    @property
    def enters(self) -> bool:
        """Whether who has asked it may listen to the roll from then on."""
        return self.let_in is not None or self.together is not None
