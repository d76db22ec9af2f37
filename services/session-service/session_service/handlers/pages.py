"""How a list is cut into pages, and as whom its asker is looked up."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from shared.messages import Actor

T = TypeVar("T")


def as_teacher(actor: Actor) -> str | None:
    """The id under which courses may list the actor as a teacher, None when they are none."""
    return actor.id if actor.role == "teacher" else None


def page(found: Sequence[T], limit: int, cursor: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """Cut what was found, one beyond `limit`, to a page; with the next one's cursor where there is one."""
    items = found[:limit]
    return items, cursor(items[-1]) if len(found) > limit else None
