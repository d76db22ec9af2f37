"""What callers ask for in an address: a query is read into one of these, or refused as `invalid` with the fault named."""

from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from gateway.payloads import Id, Line, Seq, refused
from shared.messages import SessionStatus

MAX_PAGE: Final = 200

Limit = Annotated[int, Meta(ge=1, le=MAX_PAGE, description="How many items at most.")]
Cursor = Annotated[Line, Meta(description="The `next_cursor` of the page before.")]
SeqCursor = Annotated[str, Meta(pattern=r"\A[0-9]{1,15}\Z", description="The `next_cursor` of the page before.")]
OfCourse = Annotated[Id, Meta(description="Only of this course.")]

Q = TypeVar("Q", bound=Struct)


class Nothing(Struct, frozen=True):
    """No query, and no body."""


class PageQuery(Struct, frozen=True, kw_only=True):
    """One page of a list."""

    limit: Limit = 50
    cursor: Cursor | None = None


class SessionsQuery(PageQuery, frozen=True, kw_only=True):
    """One page of sessions."""

    course_id: OfCourse | None = None
    status: SessionStatus | None = None


class OwnQuery(PageQuery, frozen=True, kw_only=True):
    """One page of one's own records."""

    course_id: OfCourse | None = None


class HistoryQuery(Struct, frozen=True, kw_only=True):
    """One page of a roll's history. The cursor goes on where a page ended, whatever `since_seq` says."""

    since_seq: Annotated[Seq, Meta(description="Only changes after this number.")] = 0
    limit: Limit = 50
    cursor: SeqCursor | None = None

    @property
    def after(self) -> int:
        """The number after which the page begins."""
        return self.since_seq if self.cursor is None else int(self.cursor)


def read_query(query: Mapping[str, str], kind: type[Q]) -> Q:
    """Read a query (unknown names ignored); raise Refused `invalid` naming the fault."""
    try:
        return msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise refused(error) from None
