"""The rules of courses and rosters: who may do what, and what becomes of them."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from session_service import rules
from shared.errors import Refused
from shared.messages import (
    Actor,
    News,
    Student,
)
from tests.unit.session_samples import (
    ADA,
    ANN,
    BOB,
    NOW,
    ROBOT,
    ROOT,
    a_course,
    a_session,
    code_of,
    fields_of,
    to_create,
    to_put,
)


@pytest.mark.parametrize(
    ("actor", "enrolled", "reads", "reads_roster", "changes"),
    [
        (ROOT, False, True, True, True),
        (ADA, False, True, True, True),
        (BOB, False, False, False, False),
        (BOB, True, True, False, False),
        (ANN, False, False, False, False),
        (ANN, True, True, False, False),
        (ROBOT, False, True, True, False),
        # The role says what kind of person it is: being listed makes nobody a teacher.
        (Actor("ada", "Ada", "student"), False, False, False, False),
        (Actor("ada", "Ada", "service"), False, True, True, False),
    ],
)
def test_the_role_says_who_it_is_and_the_course_says_what_they_may_touch(
    actor: Actor, enrolled: bool, reads: bool, reads_roster: bool, changes: bool
) -> None:
    def allowed(check: Any, *arguments: Any, **named: Any) -> bool:
        try:
            check(*arguments, **named)
        except Refused as refused:
            assert refused.code == "forbidden"
            return False
        return True

    assert allowed(rules.check_reader, actor, ("ada",), enrolled=enrolled) is reads
    assert allowed(rules.check_staff_reader, actor, ("ada",)) is reads_roster
    assert allowed(rules.check_staff, actor, ("ada",)) is changes
    assert allowed(rules.put_course, a_course(), to_put(actor), NOW) is changes
    assert allowed(rules.archive_course, a_course(), actor, NOW) is changes
    assert allowed(rules.create_session, a_course(), to_create(actor), NOW) is changes
    assert allowed(rules.start_session, a_session(), actor, NOW) is changes
    assert allowed(rules.end_session, a_session("active"), actor, NOW) is changes


def test_a_teacher_may_make_a_course_that_lists_them() -> None:
    made = rules.put_course(None, to_put(ADA), NOW)

    assert (made.version, made.created_at, made.teacher_ids) == (1, NOW, ("ada",))


@pytest.mark.parametrize("actor", [BOB, ANN, ROBOT, Actor("ada", "Ada", "student")])
def test_nobody_else_may_make_it(actor: Actor) -> None:
    with pytest.raises(Refused) as refused:
        rules.put_course(None, to_put(actor), NOW)

    assert code_of(refused) == "forbidden"


def test_a_teacher_may_not_add_themself_to_a_course_that_exists() -> None:
    with pytest.raises(Refused) as refused:
        rules.put_course(a_course(), to_put(BOB, teacher_ids=("ada", "bob")), NOW)

    assert code_of(refused) == "forbidden"


def test_a_course_put_as_it_is_stays_the_same_object() -> None:
    course = a_course()

    assert rules.put_course(course, to_put(ADA), NOW + timedelta(days=1)) is course


def test_a_changed_course_has_the_next_version() -> None:
    later = NOW + timedelta(days=1)

    changed = rules.put_course(a_course(), to_put(ADA, title="Geometry"), later)

    assert (changed.title, changed.version, changed.created_at, changed.updated_at) == (
        "Geometry",
        2,
        NOW,
        later,
    )


def test_a_teacher_named_twice_is_one_teacher() -> None:
    assert rules.put_course(None, to_put(ADA, teacher_ids=("ada", "bob", "ada")), NOW).teacher_ids == (
        "ada",
        "bob",
    )


def test_an_archived_course_takes_neither_changes_nor_sessions() -> None:
    archived = a_course(archived_at=NOW)

    assert rules.archive_course(archived, ADA, NOW) is archived
    with pytest.raises(Refused) as change:
        rules.put_course(archived, to_put(ADA, title="Geometry"), NOW)
    with pytest.raises(Refused) as creation:
        rules.create_session(archived, to_create(), NOW)

    assert (code_of(change), code_of(creation)) == ("conflict", "conflict")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Berlin",
        "Europe",
        "europe/berlin",
        "right/Europe/Berlin",
        "localtime",
        "../Europe/Berlin",
        "/etc/passwd",
        "\0",
    ],
)
def test_a_time_zone_is_one_of_the_iana_names(name: str) -> None:
    with pytest.raises(Refused) as refused:
        rules.put_course(None, to_put(ADA, time_zone=name), NOW)

    assert fields_of(refused) == ["time_zone"]


students = st.builds(
    Student,
    student_id=st.sampled_from("abcdef"),
    name=st.sampled_from(["Ann", "Ben"]),
    email=st.sampled_from([None, "a@example.org"]),
)
rosters = st.lists(students, unique_by=lambda student: student.student_id)


@given(old=rosters, new=rosters)
def test_what_changed_makes_the_new_roster_of_the_old_one(old: list[Student], new: list[Student]) -> None:
    change = rules.compare_rosters(old, new)

    result = {student.student_id: student for student in old if student.student_id not in change.removed}
    result |= {student.student_id: student for student in change.added + change.updated}
    assert result == {student.student_id: student for student in new}
    assert not {student.student_id for student in change.added} & {student.student_id for student in old}
    assert all(student not in old for student in change.updated)
    assert bool(change) == ({*map(repr, old)} != {*map(repr, new)})


def test_a_roster_that_names_a_student_twice_is_invalid() -> None:
    twice = [Student(student_id="ann", name="Ann"), Student(student_id="ann", name="Anne")]

    with pytest.raises(Refused) as refused:
        rules.compare_rosters([], twice)

    assert fields_of(refused) == ["student_id"]


@given(before=st.none() | students, wanted=students)
def test_enrolling_twice_changes_nothing_the_second_time(before: Student | None, wanted: Student) -> None:
    before = before and replace(before, student_id=wanted.student_id)

    change = rules.enrol_student(before, wanted)

    [after] = change.added + change.updated or (before,)
    assert after is not None
    assert not rules.enrol_student(after, wanted)
    assert (change.added == (wanted,)) is (before is None)
    assert after.name == wanted.name
    assert change.removed == ()


def test_what_is_not_said_of_an_enrolled_student_stays_as_it_was() -> None:
    known = Student(student_id="ann", name="Ann", email="ann@example.org", roll_number="7")

    assert not rules.enrol_student(known, Student(student_id="ann", name=""))
    change = rules.enrol_student(known, Student(student_id="ann", name="Anne", roll_number="8"))
    assert change.updated == (replace(known, name="Anne", roll_number="8"),)


def test_removing_a_student_removes_who_is_there() -> None:
    assert rules.remove_student(Student(student_id="ann", name="Ann")).removed == ("ann",)
    assert not rules.remove_student(None)


def test_there_is_a_roster_to_wait_for_while_sessions_are_active() -> None:
    course = a_course(roster_version=4)
    active = a_session("active")

    assert rules.roster_news(course, []) == News(course_id="c1")
    assert rules.roster_news(course, [active]) == News(course_id="c1", roster_version=4, session_versions={active.id: 2})
