"""`rollcall parking`: an operator sees what no service could handle, and sends it back without losing any of it."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta

import aio_pika
import pytest
from aio_pika.message import IncomingMessage
from typer.testing import CliRunner, Result

from rollcall.__main__ import app
from rollcall.launcher import free_port
from rollcall.parking import renewed, what
from shared import topology
from shared.amqp import parking
from shared.amqp.bus import AmqpBus, open_amqp
from shared.clock import rfc3339, utc_now
from shared.errors import StartupFailed
from shared.messages import (
    ATTENDANCE_COMMANDS,
    ATTENDANCE_EVENTS,
    SESSION_COMMANDS,
    Actor,
    JoinRoll,
    ReplyTo,
    decode_commands,
    encode,
)
from tests.contract.bus_talk import empty, send_once, take

SECONDS = 20
NOW = utc_now()


@pytest.fixture
async def bus(amqp_url: str) -> AsyncIterator[AmqpBus]:
    await empty(amqp_url)
    async with open_amqp(amqp_url) as bus:
        yield bus
    await empty(amqp_url)


def a_join(command_id: str) -> bytes:
    """A command whose time is long over."""
    join = JoinRoll(
        command_id=command_id,
        actor=Actor("ann", "Ann", "student"),
        received_at=NOW,
        deadline=NOW - timedelta(hours=1),
        reply_to=ReplyTo("a gateway that has gone", "1"),
        session_id="a",
    )
    return b"[" + encode(join) + b"]"


async def rollcall_parking(url: str, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner(env={"ROLLCALL_AMQP_URL": url}).invoke, app, ["parking", *arguments])


async def lines(url: str, *arguments: str) -> list[str]:
    result = await rollcall_parking(url, *arguments)
    assert result.exception is None, result.exception
    return result.stdout.splitlines()


async def refusal(url: str, *arguments: str) -> str:
    """What the operator reads in place of a traceback: `main` prints this line and ends with status 1."""
    result = await rollcall_parking(url, *arguments)
    assert isinstance(result.exception, StartupFailed), result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)


async def parked_ids(url: str) -> list[str]:
    return [line.split()[0] for line in (await lines(url, "list"))[:-1]]


async def holds(url: str, queue: str) -> list[bytes]:
    """Take what is on a queue."""
    async with await aio_pika.connect(url) as connection:
        found = await (await connection.channel()).get_queue(queue)
        bodies = []
        while (message := await found.get(fail=False)) is not None:
            bodies.append(message.body)
            await message.ack()
        return bodies


async def test_an_empty_parking_says_so(bus: AmqpBus, amqp_url: str) -> None:
    assert await lines(amqp_url, "list") == ["nothing is parked"]
    assert await lines(amqp_url, "redrive", "--all") == []


async def test_looking_changes_nothing(bus: AmqpBus, amqp_url: str) -> None:
    """The same lines with the same ids each time; what is malformed, or unprintable, is one line too."""
    inbox = bus.inbox(ATTENDANCE_COMMANDS)
    await inbox.park(a_join("c1"), "ValueError: no\nsuch\x1b[31m thing")
    await inbox.park(b'[{"bad":', "malformed: no JSON")
    await bus.inbox(ATTENDANCE_EVENTS).park(b'{"id":"a:7","type":"session.started.v1"}', "KeyError: 'roll'")

    first = await lines(amqp_url, "list")
    again = await lines(amqp_url, "list")

    assert first == again
    assert first[-1] == "3 parked"
    order = "JoinRoll", "no JSON", "session.started"
    join, malformed, event = (line.split("  ") for words in order for line in first[:-1] if words in line.split("  ")[3])
    assert join[2:] == [ATTENDANCE_COMMANDS, "JoinRoll c1", "ValueError: no such [31m thing"]
    assert malformed[2:] == [ATTENDANCE_COMMANDS, "8 bytes that are no JSON", "malformed: no JSON"]
    assert event[2:] == [ATTENDANCE_EVENTS, "session.started.v1 a:7", "KeyError: 'roll'"]
    for columns in (join, malformed, event):
        assert re.fullmatch(r"[0-9a-f]{12}", columns[0])
        assert columns[1].startswith(utc_now().date().isoformat()[:8])
    shown = await lines(amqp_url, "show", join[0])
    assert json.loads("\n".join(shown[4:]))[0]["command_id"] == "c1"
    assert (await lines(amqp_url, "show", malformed[0]))[4:] == [repr(b'[{"bad":')]


async def test_one_is_sent_back_and_the_others_stay(bus: AmqpBus, amqp_url: str) -> None:
    """With a new deadline, or its service would drop it; and without an address where nobody waits."""
    for number in range(3):
        await bus.inbox(ATTENDANCE_COMMANDS).park(a_join(f"c{number}"), "why")
    (id, *others) = [
        line.split()[0] for line in sorted(await lines(amqp_url, "list"), key=lambda line: "JoinRoll c1 " not in line)
    ][:-1]

    (said,) = await lines(amqp_url, "redrive", id)
    assert said.startswith(f"{id}  sent back to {ATTENDANCE_COMMANDS}, to be done until ")

    (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
    (command,) = decode_commands(delivery.body)
    assert (command.command_id, command.received_at, command.reply_to) == ("c1", NOW, None)
    # It has left the parking: a service that is away for an hour must not drop it.
    assert timedelta(hours=23) < command.deadline - utc_now() < timedelta(hours=25)
    assert said.endswith(rfc3339(command.deadline))
    await delivery.ack()
    assert await parked_ids(amqp_url) == others


async def test_all_are_sent_back_each_to_its_queue(bus: AmqpBus, amqp_url: str) -> None:
    """Those too that the broker took away itself, of which only its own headers tell; here after a wait for a retry."""
    await bus.inbox(ATTENDANCE_EVENTS).park(b"{}", "malformed")
    await send_once(bus, SESSION_COMMANDS, b"1")
    (delivery,) = await take(bus, SESSION_COMMANDS, 1)
    await delivery.retry()
    (again,) = await take(bus, SESSION_COMMANDS, 1)
    rejected = again._message  # type: ignore[attr-defined]
    await rejected.channel.raw.basic_reject(rejected.tag, requeue=False)
    async with asyncio.timeout(SECONDS):
        while len(ids := await parked_ids(amqp_url)) < 2:
            pass
    assert f"{SESSION_COMMANDS}  JSON that is no message  dead-lettered by the broker: rejected" in (
        "\n".join(await lines(amqp_url, "list"))
    )

    assert len(await lines(amqp_url, "redrive", "--all")) == len(ids)

    for queue, body in ((ATTENDANCE_EVENTS, b"{}"), (SESSION_COMMANDS, b"[1]")):
        (delivery,) = await take(bus, queue, 1)
        assert delivery.body == body
        await delivery.ack()
    assert await parked_ids(amqp_url) == []


async def test_what_came_from_nowhere_stays(bus: AmqpBus, amqp_url: str) -> None:
    """Somebody put it there by hand: there is no queue to send it back to."""
    async with await aio_pika.connect(amqp_url) as admin:
        channel = await admin.channel()
        await channel.default_exchange.publish(aio_pika.Message(b"?"), topology.PARKING)
    await bus.inbox(ATTENDANCE_EVENTS).park(b"{}", "malformed")
    (stranger,) = [line.split()[0] for line in await lines(amqp_url, "list") if "unknown queue" in line]

    assert (await refusal(amqp_url, "redrive", stranger)).endswith("nobody knows which queue it came from")
    assert (await refusal(amqp_url, "redrive", "--all")).startswith("1 stay parked")
    assert await parked_ids(amqp_url) == [stranger]


async def test_interrupted_in_between_it_is_in_both_places(
    bus: AmqpBus, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bus.inbox(SESSION_COMMANDS).park(a_join("c1"), "why")

    async def die(_: IncomingMessage) -> None:
        raise ConnectionError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(IncomingMessage, "ack", die)
        assert "killed" in await refusal(amqp_url, "redrive", "--all")

    assert len(await parked_ids(amqp_url)) == 1
    (delivery,) = await take(bus, SESSION_COMMANDS, 1)
    await delivery.ack()


async def test_what_its_queue_does_not_take_stays_parked(bus: AmqpBus, amqp_url: str) -> None:
    await bus.inbox(SESSION_COMMANDS).park(a_join("c1"), "why")
    await bus.close()
    async with await aio_pika.connect(amqp_url) as admin:
        await (await admin.channel()).queue_delete(SESSION_COMMANDS)

    assert "it stays parked" in await refusal(amqp_url, "redrive", "--all")
    assert len(await parked_ids(amqp_url)) == 1


async def test_two_operators_at_once_send_each_message_back_once(bus: AmqpBus, amqp_url: str) -> None:
    for number in range(20):
        await bus.inbox(SESSION_COMMANDS).park(a_join(f"c{number}"), "why")
    await bus.close()

    operators = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rollcall", "parking", "redrive", "--all"),
            env={"PATH": os.environ["PATH"], "ROLLCALL_AMQP_URL": amqp_url},
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    told = [(await operator.communicate())[0].splitlines() for operator in operators]

    assert [operator.returncode for operator in operators] == [0, 0]
    assert sorted(map(len, told)) == [0, 20]
    commands = [decode_commands(body)[0].command_id for body in await holds(amqp_url, SESSION_COMMANDS)]
    assert sorted(commands) == sorted(f"c{number}" for number in range(20))


async def test_an_operator_who_does_not_finish_is_told_of(bus: AmqpBus, amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "LOCK_SECONDS", 0.5)
    async with parking.open_parking(amqp_url):
        assert await refusal(amqp_url, "list") == "somebody else has been at the parking for 0.5 s; try again"
    assert await lines(amqp_url, "list") == ["nothing is parked"]


async def test_nobody_reading_on_is_no_lost_connection(bus: AmqpBus, amqp_url: str) -> None:
    """As in `rollcall parking list | head`: it ends without a word, and everything stays parked."""
    await bus.inbox(SESSION_COMMANDS).park(a_join("c1"), "why")
    reading, writing = os.pipe()
    os.close(reading)
    listing = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rollcall", "parking", "list"),
        env={"PATH": os.environ["PATH"], "ROLLCALL_AMQP_URL": amqp_url},
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    _, said = await listing.communicate()
    assert (listing.returncode, said) == (1, b"")
    assert len(await parked_ids(amqp_url)) == 1


async def test_a_defect_while_an_operator_looks_is_no_lost_connection(bus: AmqpBus, amqp_url: str) -> None:
    await bus.inbox(SESSION_COMMANDS).park(a_join("c1"), "why")
    for number in range(2):
        with pytest.raises(RuntimeError, match="dictionary changed"):
            async with parking.open_parking(amqp_url) as looking, aclosing(looking.messages()) as messages:
                if number:
                    await anext(messages)
                raise RuntimeError("dictionary changed size")


async def test_what_cannot_be_read_is_shown_and_sent_back_as_it_is(bus: AmqpBus, amqp_url: str) -> None:
    """Bytes that are no text, and nesting too deep."""
    bodies = {b'[{"type":"JoinRoll","session_id":"\xff"}]', b"[" * 100_000 + b"]" * 100_000}
    for body in bodies:
        await bus.inbox(SESSION_COMMANDS).park(body, "malformed")
    await bus.close()
    listed = await lines(amqp_url, "list")
    assert sum("bytes that are no JSON" in line for line in listed) == 2
    shown = {(await lines(amqp_url, "show", parked_id))[4] for parked_id in await parked_ids(amqp_url)}
    assert shown == {repr(body) for body in bodies}
    assert {line.split("  ", 1)[1] for line in await lines(amqp_url, "redrive", "--all")} == {
        f"sent back to {SESSION_COMMANDS}"
    }
    assert set(await holds(amqp_url, SESSION_COMMANDS)) == bodies


async def test_an_operators_mistake_is_one_line(bus: AmqpBus, amqp_url: str) -> None:
    assert await refusal("", "list") == "ROLLCALL_AMQP_URL is not set"
    nowhere = f"amqp://ann:s3cret@127.0.0.1:{free_port()}/"
    line = await refusal(nowhere, "list")
    assert line.startswith("ROLLCALL_AMQP_URL: cannot reach amqp://127.0.0.1:")
    assert "s3cret" not in line
    assert await refusal(amqp_url, "show", "0123") == "no parked message has the id 0123; see `rollcall parking list`"
    for wrong in ((), ("0123", "--all")):
        assert await refusal(amqp_url, "redrive", *wrong) == "say which message: an id of `rollcall parking list`, or --all"


def test_a_message_of_many_commands_is_told_in_a_few_words() -> None:
    body = b"[" + b",".join(a_join(f"c{number}")[1:-1] for number in range(5)) + b"]"

    assert what(body) == "5 JoinRoll c0 c1 c2 …"
    assert [command.command_id for command in decode_commands(renewed(body, NOW))] == ["c0", "c1", "c2", "c3", "c4"]
    assert (what(b"[1]"), what(b"{}"), what(b"null")) == ("JSON that is no message", "None None", "JSON that is no message")
