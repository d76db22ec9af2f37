"""Who may do what on a roll: the course's teachers now decide, whoever taught when it was opened."""

from attendance_service.rules.rolls import Record, Roll
from shared.errors import Refused
from shared.messages import Actor, Session


def may_act(roll: Roll, actor: Actor) -> None:
    """Raise Refused unless the actor may change the roll: its course's teachers and admins; a service changes nothing."""
    if not _is_staff(roll, actor):
        raise Refused("forbidden")


def may_read(roll: Roll, actor: Actor) -> None:
    """Raise Refused unless the actor may see the whole roll: its course's teachers, admins and services."""
    if not (actor.role == "service" or _is_staff(roll, actor)):
        raise Refused("forbidden")


def may_read_courses(actor: Actor) -> None:
    """Raise Refused unless the actor may read of any course: who else may, session-service knows and asks as a service."""
    if actor.role not in ("admin", "service"):
        raise Refused("forbidden")


def sees_all(roll: Roll, own: Record | None, actor: Actor) -> bool:
    """Say whether the actor sees the whole roll (staff) or only their own record; enrolment decides, not the role.

    Raise Refused when they see neither.
    """
    if actor.role == "service" or _is_staff(roll, actor):
        return True
    if own is not None and own.enrolled:
        return False
    raise Refused("not_enrolled" if actor.role == "student" else "forbidden")


def staff(session: Session, user_id: str, name: str) -> Actor:
    """Tell who acted on a session as a whole: one of its teachers, or else an admin, for nobody else may."""
    return Actor(user_id, name, "teacher" if user_id in session.teacher_ids else "admin")


def _is_staff(roll: Roll, actor: Actor) -> bool:
    return actor.role == "admin" or (actor.role == "teacher" and actor.id in roll.session.teacher_ids)
