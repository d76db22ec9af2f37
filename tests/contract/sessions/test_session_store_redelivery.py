"""Commands that come again, on a real Postgres: whatever was done since, they change nothing and are answered."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine

from session_service.store import DoneOnce
from shared.clock import UNSEEN
from shared.messages import CancelSession, ChangeSession, ReplyTo, Session
from tests.contract.session_talk import (
    ROOT,
    Service,
    a_course,
    a_session,
    an_active_session,
    to_cancel,
    to_change,
    to_end,
    to_put,
    to_reopen,
    to_start,
)

pytestmark = pytest.mark.asyncio


async def test_a_command_that_was_done_changes_nothing_in_any_later_state(service: Service) -> None:
    """Every earlier command again, after every step of a long life."""
    await a_course(service)
    session = await a_session(service)
    life: list[DoneOnce] = []
    steps: tuple[Callable[[Session], DoneOnce], ...] = (
        lambda s: to_change(s, title="Ideals"),
        to_start,
        lambda s: to_change(s, title="Fields"),
        to_end,
        to_end,
        to_reopen,
        to_start,
        lambda s: to_change(s, title="Modules"),
        to_end,
        lambda s: to_reopen(s, reason="again"),
        to_cancel,
        to_cancel,
    )
    for step in steps:
        life.append(step(session))
        service.now += timedelta(minutes=1)
        await service.do(life[-1])
        now = await service.of(session)

        for command in life:
            again = replace(command, reply_to=ReplyTo("gateway", f"again {command.command_id}"))
            service.now += timedelta(minutes=1)
            service.left.clear()
            answer = await service.do(again)

            if isinstance(command, ChangeSession | CancelSession):
                assert (answer.session, service.events) == (now, [])
            else:
                [event] = service.events
                assert event.reply_to == again.reply_to
                assert event.data.session.status == now.status
            assert await service.of(session) == now


async def test_what_was_refused_stays_undone_when_it_comes_again_after_the_next_turn(service: Service) -> None:
    """A worker may die between the answer and the acknowledgement: an end must not end what was started since."""
    await a_course(service)
    session = await a_session(service)
    early = replace(to_end(session), received_at=service.now)
    assert await service.code(early) == "session_not_active"
    service.now += timedelta(seconds=1)
    await service.do(to_start(session))

    assert await service.code(replace(early, redelivered=True)) == "timeout"
    # Nor what was refused after the start was decided, and before it was seen.
    unseen = replace(early, received_at=service.now + UNSEEN - timedelta(milliseconds=1), redelivered=True)
    assert await service.code(unseen) == "timeout"

    assert (await service.of(session)).status == "active"
    # What comes for the first time may have waited behind the start.
    await service.do(early)
    assert (await service.of(session)).status == "completed"


@pytest.mark.parametrize(
    ("life", "again", "told"),
    [
        ("start end", 0, ("rollcall.session.ended.v1", 3)),
        ("start end reopen", 0, ("rollcall.session.started.v1", 4)),
        ("start end reopen", 1, ("rollcall.session.started.v1", 4)),
        ("start end reopen end", 2, ("rollcall.session.ended.v1", 5)),
        ("start end reopen end", 1, ("rollcall.session.ended.v1", 5)),
        ("start cancel", 0, ("rollcall.session.cancelled.v1", 3)),
        ("start end reopen cancel", 2, ("rollcall.session.cancelled.v1", 5)),
    ],
)
async def test_what_is_told_to_whoever_asks_again_is_the_newest_turn(
    service: Service, life: str, again: int, told: tuple[str, int]
) -> None:
    await a_course(service)
    session = await a_session(service)
    turns = {"start": to_start, "end": to_end, "reopen": to_reopen, "cancel": to_cancel}
    commands = [turns[name](session) for name in life.split()]
    for command in commands:
        await service.do(command)
    service.left.clear()

    await service.do(commands[again])

    [event] = service.events
    assert (event.type, event.sequence, event.reply_to) == (*told, commands[again].reply_to)


async def test_a_new_command_is_not_an_old_one(service: Service) -> None:
    """Neither the same id from somebody else, nor another id from the same person, was done before."""
    session = await an_active_session(service)
    first = to_end(session)
    await service.do(first)
    await service.do(to_reopen(session))

    await service.do(replace(first, actor=ROOT))

    assert (await service.of(session)).status == "completed"


async def test_a_command_that_changed_nothing_was_done_all_the_same(service: Service) -> None:
    """An end of what had ended, sent again once it is open, ends nothing."""
    session = await an_active_session(service)
    await service.do(to_end(session))
    late = to_end(session, by=ROOT)
    await service.do(late)
    await service.do(to_reopen(session))

    await service.do(late)

    assert (await service.of(session)).status == "active"


async def test_a_command_that_was_refused_was_not_done(service: Service) -> None:
    await a_course(service)
    session = await a_session(service)
    end = to_end(session)
    assert await service.code(end) == "session_not_active"
    await service.do(to_start(session))

    await service.do(end)

    assert (await service.of(session)).status == "completed"


async def test_an_id_that_was_used_for_another_command_is_a_conflict(service: Service) -> None:
    session = await an_active_session(service)
    end = to_end(session)
    await service.do(end)

    assert await service.code(replace(to_reopen(session), command_id=end.command_id)) == "conflict"
    assert (await service.of(session)).status == "completed"


async def test_who_is_no_teacher_any_more_is_not_answered_for_what_they_did(service: Service) -> None:
    session = await an_active_session(service)
    end = to_end(session)
    await service.do(end)
    await service.do(to_put(teacher_ids=("bob",)))

    assert await service.code(end) == "forbidden"


async def test_the_same_command_twice_in_a_batch_is_done_once_and_both_are_answered(service: Service) -> None:
    session = await an_active_session(service)
    await service.do(to_end(session))
    service.left.clear()
    reopening = to_reopen(session)
    again = replace(reopening, reply_to=ReplyTo("gateway", "again"))

    await service.do_all([reopening, again])

    assert [event.sequence for event in service.events] == [4, 4]
    assert [event.reply_to for event in service.events] == [reopening.reply_to, again.reply_to]


async def test_two_replicas_given_the_same_command_do_it_once(patient_engine: AsyncEngine) -> None:
    service, other = Service(patient_engine), Service(patient_engine)
    session = await an_active_session(service)
    await service.do(to_end(session))
    service.left.clear()
    reopening = to_reopen(session)

    await asyncio.gather(service.do(reopening), other.do(reopening))

    assert [event.sequence for event in service.events + other.events] == [4, 4]
