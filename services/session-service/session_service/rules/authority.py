"""Who may do what: the role says what kind of person asks, the course says what they may touch. Pure."""

from collections.abc import Sequence

from shared.errors import Refused
from shared.messages import Actor


def is_staff(actor: Actor, teacher_ids: Sequence[str]) -> bool:
    """Whether the actor may act on a course with these teachers."""
    return actor.role == "admin" or (actor.role == "teacher" and actor.id in teacher_ids)


def reads_everything(actor: Actor) -> bool:
    """Whether the actor may read every course, roster and session."""
    return actor.role in ("admin", "service")


def check_staff(actor: Actor, teacher_ids: Sequence[str]) -> None:
    """Raise Refused unless the actor may change what belongs to a course with these teachers."""
    if not is_staff(actor, teacher_ids):
        raise Refused("forbidden")


def check_staff_reader(actor: Actor, teacher_ids: Sequence[str]) -> None:
    """Raise Refused unless the actor may read what only staff (and services) may."""
    if not (is_staff(actor, teacher_ids) or reads_everything(actor)):
        raise Refused("forbidden")


def check_reader(actor: Actor, teacher_ids: Sequence[str], *, enrolled: bool) -> None:
    """Raise Refused unless the actor may read a course and its sessions; enrolment decides, not the role."""
    if not enrolled:
        check_staff_reader(actor, teacher_ids)
