"""How sessions look outside: events that are told again, and cursors."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from session_service import rules
from session_service.rules import Roster, Session
from session_service.views import (
    read_session_cursor,
    session_cancelled,
    session_changed,
    session_cursor,
    session_ended,
    session_reopened,
    session_started,
    unreported,
)
from shared.errors import Refused
from shared.messages import (
    Enrolled,
)
from tests.unit.session_samples import (
    ADA,
    NOW,
    a_session,
)

ROSTER = Roster(version=3, students=(Enrolled("ann", "Ann"),))


def turned(*turns: str, **changes: Any) -> Session:
    """A session after these turns, a minute apart."""
    session, now = a_session(), NOW
    for turn in turns:
        now += timedelta(minutes=1)
        if turn == "reopen":
            session = rules.reopen_session(session, ADA, "too early", now)
        else:
            do = {"start": rules.start_session, "end": rules.end_session, "cancel": rules.cancel_session}[turn]
            session = do(session, ADA, now)
    return replace(session, **changes)


@pytest.mark.parametrize("later", [("end",), ("end", "reopen"), ("cancel",), ("end", "reopen", "end")])
def test_a_start_told_again_is_the_first_to_the_letter_whatever_became_of_the_session(later: tuple[str, ...]) -> None:
    first = session_started(turned("start"), ROSTER)

    again = session_started(turned("start", *later), ROSTER)

    assert again == first
    assert (first.id, first.sequence) == ("session:0123456789abcdef01234567:2", 2)
    data: Any = first.data
    assert (data.roster, data.roster_version, data.reason) == (ROSTER.students, 3, None)
    assert (data.session.status, data.session.ended_at) == ("active", None)


@pytest.mark.parametrize("later", [("end",), ("cancel",)])
def test_a_reopening_told_again_is_the_first_to_the_letter_with_its_reason(later: tuple[str, ...]) -> None:
    first = session_reopened(turned("start", "end", "reopen"), ROSTER)

    again = session_reopened(turned("start", "end", "reopen", *later), ROSTER)

    assert again == first
    data: Any = first.data
    assert (first.sequence, data.reason, data.session.status, data.session.ended_at) == (4, "too early", "active", None)


def test_an_end_told_again_is_the_first_to_the_letter_though_the_session_goes_on() -> None:
    first = session_ended(turned("start", "end"))

    assert session_ended(turned("start", "end", "reopen")) == first


def test_what_never_happened_cannot_be_told() -> None:
    for tell in (session_started, session_reopened):
        with pytest.raises(ValueError):
            tell(a_session(), ROSTER)
    for session in (a_session(), a_session("cancelled")):
        with pytest.raises(ValueError):
            session_ended(session)
    for session in (a_session(), a_session("completed")):
        with pytest.raises(ValueError):
            session_cancelled(session)


STARTED, ENDED, CANCELLED = (f"rollcall.session.{name}.v1" for name in ("started", "ended", "cancelled"))


@pytest.mark.parametrize(
    ("turns", "roll_version", "told"),
    [
        ((), 0, []),
        (("cancel",), 0, []),
        (("start",), 0, [(STARTED, 2)]),
        (("start",), 2, []),
        # The roll may know of a change that is no turn.
        (("start",), 7, []),
        (("start", "end"), 0, [(STARTED, 2), (ENDED, 3)]),
        (("start", "end"), 2, [(ENDED, 3)]),
        (("start", "end"), 3, []),
        (("start", "cancel"), 0, [(STARTED, 2), (CANCELLED, 3)]),
        (("start", "cancel"), 2, [(CANCELLED, 3)]),
        (("start", "reopen"), 0, [(STARTED, 2), (STARTED, 3)]),
        (("start", "end", "reopen"), 0, [(STARTED, 2), (STARTED, 4)]),
        (("start", "end", "reopen"), 2, [(STARTED, 4)]),
        (("start", "end", "reopen", "end"), 2, [(ENDED, 5)]),
        (("start", "end", "reopen", "end"), 5, []),
    ],
)
def test_a_roll_is_told_of_the_start_where_there_is_none_and_of_the_newest_turn(
    turns: tuple[str, ...], roll_version: int, told: list[tuple[str, int]]
) -> None:
    session = turned(*turns, roll_version=roll_version)

    assert [(event.type, event.sequence) for event in unreported(session, ROSTER)] == told


def test_a_change_of_the_roster_is_told_whole_and_one_of_the_session_without() -> None:
    session = a_session("active")

    of_roster: Any = session_changed(session, ADA, ROSTER, ["eve"]).data
    of_session: Any = session_changed(session, ADA).data

    assert (of_roster.roster, of_roster.roster_version, of_roster.removed) == (ROSTER.students, 3, ("eve",))
    assert (of_session.roster, of_session.roster_version, of_session.removed) == (None, 0, ())


def test_an_event_tells_who_and_why() -> None:
    data: Any = session_ended(a_session("completed")).data

    assert (data.cause, data.ended_by, data.ended_by_id, data.session.status) == (
        "ended",
        "Ada",
        "ada",
        "completed",
    )


def test_a_cursor_names_the_place_after_a_session() -> None:
    session = a_session()

    assert read_session_cursor(session_cursor(session)) == (session.starts_at, session.id)
    assert read_session_cursor(None) is None


@given(st.text())
@example("0001-01-01T00:00:00+14:00_x")
@example("2026-11-24T09:00:00")
def test_a_cursor_of_somebody_elses_making_is_invalid(text: str) -> None:
    try:
        read_session_cursor(text)
    except Refused as refused:
        assert [detail["field"] for detail in refused.details] == ["cursor"]
