"""What gateways tell each other of who is connected, and which of them tells that a student has left; no Redis."""

from collections.abc import Mapping

from msgspec import Struct, json

from shared.messages import Time


class Moved(Struct, frozen=True):
    """A student who has gone or come back; what gateways tell each other on a presence channel is a list of these."""

    student_id: str
    left_at: Time | None
    """When their last socket went; None where they have one again."""


def decode_moved(body: bytes) -> list[Moved]:
    """Read one message of a presence channel; raise msgspec.MsgspecError when it is none."""
    return json.decode(body, type=list[Moved])


class Statement(Struct, omit_defaults=True):
    """All that one gateway has to say of a session. Times are of one shape, and compare as text."""

    here: dict[str, int] = {}
    """How many sockets each student has there."""
    gone: dict[str, Time] = {}
    """When a student's last socket there went, while it is not settled whether that gateway tells of it."""
    told: dict[str, Time] = {}
    """When that gateway has told of a student: of whatever departures of theirs came before."""

    def __bool__(self) -> bool:
        return bool(self.here or self.gone or self.told)


def decode_statement(body: bytes) -> Statement:
    """Read what a gateway says; raise msgspec.MsgspecError when it says nothing that can be read."""
    return json.decode(body, type=Statement)


def must_tell(gateway_id: str, student_id: str, left_at: Time, others: Mapping[str, Statement]) -> bool:
    """Decide whether a departure is for this gateway to tell, by what the others say of the session.

    Of gateways that see each other's departures of a student who is connected nowhere, it is so for the one that saw the last.
    """
    return not any(
        student_id in said.here
        or said.told.get(student_id, "") >= left_at
        or (said.gone.get(student_id, ""), other_id) > (left_at, gateway_id)
        for other_id, said in others.items()
    )
