"""The turns of a session's life as a table: who may take them, what each makes of it, when it ends by itself."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service import rules
from session_service.rules import End, Reopening, Session, Turn
from shared.clock import rfc3339
from shared.errors import CODES, Refused
from shared.messages import Actor, EndSession, RollClosed, SessionStatus
from tests.unit.session_samples import ADA, BOB, NOBODY, NOW, ROOT, a_session, envelope, refusal

TURNS: dict[str, Callable[[Session, Actor, datetime], Session]] = {
    "start": rules.start_session,
    "end": rules.end_session,
    "reopen": lambda session, actor, now: rules.reopen_session(session, actor, "too early", now),
    "cancel": rules.cancel_session,
}
GRACE = timedelta(minutes=15)

moments = st.datetimes(datetime(2026, 10, 1), datetime(2027, 4, 30), timezones=st.just(UTC))
lengths = st.timedeltas(timedelta(minutes=1), timedelta(hours=26))
graces = st.timedeltas(timedelta(0), timedelta(days=1))


def test_starting_and_ending_take_one_version_each_and_say_who_did_it() -> None:
    started = rules.start_session(a_session(), ADA, NOW)
    ended = rules.end_session(started, ROOT, NOW + timedelta(hours=1))

    assert (started.status, started.version) == ("active", 2)
    assert started.started == Turn(at=NOW, version=2, by="Ada", by_id="ada")
    assert (ended.status, ended.version) == ("completed", 3)
    assert ended.ended == End(at=NOW + timedelta(hours=1), version=3, by="Root", by_id="root", cause="ended")
    assert ended.started == started.started


def test_starting_again_and_ending_again_change_nothing() -> None:
    active, completed = a_session("active"), a_session("completed")

    assert rules.start_session(active, ROOT, NOW) is active
    assert rules.end_session(completed, ROOT, NOW) is completed


@pytest.mark.parametrize(
    ("status", "turn", "becomes"),
    [
        ("scheduled", "start", "active"),
        ("scheduled", "end", "session_not_active"),
        ("scheduled", "reopen", "session_not_active"),
        ("scheduled", "cancel", "cancelled"),
        ("active", "start", "the same"),
        ("active", "end", "completed"),
        ("active", "reopen", "active"),
        ("active", "cancel", "cancelled"),
        ("completed", "start", "session_completed"),
        ("completed", "end", "the same"),
        ("completed", "reopen", "active"),
        ("completed", "cancel", "session_completed"),
        ("cancelled", "start", "session_cancelled"),
        ("cancelled", "end", "session_cancelled"),
        ("cancelled", "reopen", "session_cancelled"),
        ("cancelled", "cancel", "the same"),
    ],
)
def test_what_each_turn_makes_of_each_state(status: SessionStatus, turn: str, becomes: str) -> None:
    """Everything else comes back as it is, or is refused with its reason."""
    session = a_session(status)
    later = NOW + timedelta(hours=3)

    assert refusal(lambda: TURNS[turn](session, BOB, later)) == "forbidden"
    if becomes in CODES:
        assert refusal(lambda: TURNS[turn](session, ADA, later)) == becomes
    elif becomes == "the same":
        assert TURNS[turn](session, ADA, later) is session
    else:
        turned = TURNS[turn](session, ADA, later)
        assert (turned.status, turned.version, turned.updated_at) == (becomes, session.version + 1, later)
        assert turned.last_turn is not None
        assert (turned.last_turn.at, turned.last_turn.version) == (later, turned.version)
        assert (turned.last_turn.by, turned.last_turn.by_id) == ("Ada", "ada")
        assert turned.created_at == session.created_at


def test_a_reopening_keeps_the_first_start_and_the_last_end() -> None:
    completed = a_session("completed")

    again = rules.reopen_session(completed, ROOT, "too early", NOW + timedelta(hours=3))

    assert (again.started, again.ended) == (completed.started, completed.ended)
    assert again.ended_at is None
    assert again.reopened == Reopening(at=NOW + timedelta(hours=3), version=4, by="Root", by_id="root", reason="too early")


def test_an_end_is_only_shown_of_what_began_and_is_over() -> None:
    later = NOW + timedelta(hours=1)

    assert rules.cancel_session(a_session(), ADA, later).ended_at is None
    assert rules.cancel_session(a_session("active"), ADA, later).ended_at == later
    assert a_session("completed").ended_at == later


def test_what_never_began_awaits_no_roll() -> None:
    assert (a_session().turn_version, a_session("cancelled").turn_version) == (0, 0)
    assert (a_session("active").turn_version, a_session("completed").turn_version) == (2, 3)


@given(st.lists(st.tuples(st.sampled_from(sorted(TURNS)), st.timedeltas(timedelta(hours=-1), timedelta(hours=1)))))
def test_whatever_is_done_numbers_have_no_gap_and_turns_are_in_order(life: list[tuple[str, timedelta]]) -> None:
    """Though the replicas' clocks are an hour apart."""
    session, now = a_session(), NOW
    for turn, drift in life:
        before = session
        with suppress(Refused):
            session = TURNS[turn](session, ADA, now + drift)
        assert session.version - before.version in (0, 1)
        assert (session.version == before.version) is (session == before)
        assert session.started is None or session.started == (before.started or session.started)
        turns = [turn for turn in (session.started, session.reopened, session.ended) if turn]
        ordered = sorted(turns, key=lambda turn: turn.version)
        assert [turn.at for turn in ordered] == sorted(turn.at for turn in turns)
        now += timedelta(minutes=1)


def test_a_session_never_ends_before_it_started_though_clocks_differ() -> None:
    session = a_session("active")

    ended = rules.end_session(session, ADA, NOW - timedelta(seconds=5))

    assert ended.ended_at == session.started_at


# By submission


def submitted(version: int, at: datetime) -> RollClosed:
    """What a roll says that was submitted, having heard of that version."""
    return RollClosed(
        first_seq=2,
        session_id="0123456789abcdef01234567",
        course_id="c1",
        cause="submitted",
        statistics=NOBODY,
        ended_by="Bob",
        ended_by_id="bob",
        ended_at=rfc3339(at),
        session_version=version,
    )


def test_a_submission_ends_an_active_session_and_awaits_nothing() -> None:
    at = NOW + timedelta(minutes=30)

    ended = rules.end_by_submission(a_session("active"), submitted(2, at))

    assert (ended.status, ended.version, ended.roll_version, ended.turn_version) == ("completed", 3, 3, 3)
    assert ended.ended == End(at=at, version=3, by="Bob", by_id="bob", cause="submitted")


@pytest.mark.parametrize("status", ["scheduled", "completed", "cancelled"])
def test_a_submission_changes_nothing_else(status: SessionStatus) -> None:
    session = a_session(status)

    assert rules.end_by_submission(session, submitted(9, NOW)) is session


def test_a_submission_of_before_the_reopening_ends_nothing() -> None:
    again = rules.reopen_session(a_session("completed"), ADA, "too early", NOW + timedelta(hours=3))

    assert rules.end_by_submission(again, submitted(3, NOW)) is again
    assert rules.end_by_submission(again, submitted(4, NOW)).status == "completed"


# By the clock


@given(planned=moments, length=lengths, started=moments, grace=graces)
def test_a_session_never_ends_by_itself_before_its_planned_length_or_its_planned_end(
    planned: datetime, length: timedelta, started: datetime, grace: timedelta
) -> None:
    """And not a moment after both."""
    session = rules.start_session(a_session(starts_at=planned, ends_at=planned + length), ADA, started)

    due = rules.closing_time(session, grace)

    assert due >= started + length
    assert due >= planned + length + grace
    assert due in (started + length, planned + length + grace)
    assert rules.end_automatically(session, grace, due - timedelta(milliseconds=1)) is session
    ended = rules.end_automatically(session, grace, due)
    assert ended.ended == End(at=due, version=3, by="Rollcall", by_id="system", cause="automatic")


@given(planned=moments, length=lengths, started=moments, over=lengths, reopened=lengths, grace=graces)
def test_a_session_that_was_reopened_has_its_planned_length_once_more(
    planned: datetime, length: timedelta, started: datetime, over: timedelta, reopened: timedelta, grace: timedelta
) -> None:
    session = rules.start_session(a_session(starts_at=planned, ends_at=planned + length), ADA, started)
    session = rules.end_session(session, ADA, started + over)
    session = rules.reopen_session(session, ADA, "too early", started + over + reopened)

    due = rules.closing_time(session, grace)

    assert due == max(planned + length + grace, started + over + reopened + length)


@pytest.mark.parametrize("status", ["scheduled", "completed", "cancelled"])
def test_only_what_is_active_ends_by_itself(status: SessionStatus) -> None:
    session = a_session(status)

    assert rules.end_automatically(session, GRACE, NOW + timedelta(days=9)) is session


# Done before


def test_a_command_is_known_by_its_kind_too() -> None:
    end = EndSession(**envelope(ADA), session_id="s")

    assert not rules.done_before(None, end)
    assert rules.done_before("EndSession", end)
    assert refusal(lambda: rules.done_before("StartSession", end)) == "conflict"
