"""How a statement is run in a transaction, and how its rows come back."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, TextClause
from sqlalchemy.ext.asyncio import AsyncConnection

Asked = Sequence[tuple[str, str]]
"""(id of a course or session, id of the actor) pairs; at least one."""


class Queries:
    """What is asked and written in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def _one(self, statement: TextClause, **parameters: Any) -> Row[Any] | None:
        return (await self._connection.execute(statement, parameters)).one_or_none()

    async def _all(self, statement: TextClause, **parameters: Any) -> Sequence[Row[Any]]:
        return (await self._connection.execute(statement, parameters)).all()

    async def _do(self, statement: TextClause, **parameters: Any) -> None:
        await self._connection.execute(statement, parameters)
