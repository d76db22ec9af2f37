"""Rolls over HTTP: to read, to mark, and to take away as a table."""

import asyncio

from aiohttp import web

from gateway import views
from gateway.answers import HistoryList, Marked, OwnAttendanceList, RollAnswer, history_item, own_attendance
from gateway.http.routes import Asked, Routes, as_file, as_json, operation
from gateway.openapi import Answer, from_json, from_query
from gateway.payloads import MarkBody, MarkPayload
from gateway.queries import HistoryQuery, Nothing, OwnQuery
from gateway.reports import Summary, roll_table, summary, summary_table
from gateway.requests import LONG_SECONDS
from gateway.spreadsheets import CSV_TYPE, XLSX_TYPE, Table, file_name, write_csv, write_xlsx

_NO_ROLL = ("session_not_found", "session_not_active", "session_cancelled")
_CSV = Answer("The table, to be saved", None, CSV_TYPE)
_XLSX = Answer("The table, to be saved", None, XLSX_TYPE)


class Rolls(Routes):
    """The routes of rolls."""

    tag = "rolls"

    @operation(
        "GET", "/sessions/{session_id}/attendance", from_query(Nothing), Answer("The roll", RollAnswer), refusals=_NO_ROLL
    )
    async def read_roll(self, asked: Asked[Nothing]) -> web.Response:
        """Read a roll: the session, everybody's record, the statistics."""
        return self._acknowledged(views.roll(await self._requests.read_roll(asked.actor, asked.session_id)))

    @operation(
        "PUT",
        "/sessions/{session_id}/attendance/{student_id}",
        from_json(MarkBody),
        Answer("The record as it is now", Marked),
        refusals=(*_NO_ROLL, "not_enrolled", "reason_required", "conflict"),
    )
    async def mark(self, asked: Asked[MarkBody]) -> web.Response:
        """Set one student's record; on a submitted roll that needs a reason."""
        said = asked.said
        payload = MarkPayload(
            session_id=asked.session_id,
            student_id=asked.student_id,
            status=said.status,
            remarks=said.remarks,
            reason=said.reason,
            expected_seq=said.expected_seq,
            command_id=said.command_id,
        )
        return self._acknowledged(views.marked(await self._requests.mark(asked.actor, payload)))

    @operation("GET", "/sessions/{session_id}/attendance.csv", from_query(Nothing), _CSV, refusals=_NO_ROLL)
    async def roll_as_csv(self, asked: Asked[Nothing]) -> web.Response:
        """Read a roll as a table, CSV."""
        table = await self._roll_table(asked)
        return await self._csv(table, "attendance", asked.session_id)

    @operation("GET", "/sessions/{session_id}/attendance.xlsx", from_query(Nothing), _XLSX, refusals=_NO_ROLL)
    async def roll_as_xlsx(self, asked: Asked[Nothing]) -> web.Response:
        """Read a roll as a table, a spreadsheet."""
        table = await self._roll_table(asked)
        return await self._xlsx(table, "attendance", asked.session_id)

    @operation(
        "GET", "/sessions/{session_id}/history", from_query(HistoryQuery), Answer("One page", HistoryList), refusals=_NO_ROLL
    )
    async def read_history(self, asked: Asked[HistoryQuery]) -> web.Response:
        """Read every change of a roll, oldest first."""
        page = await self._requests.read_history(asked.actor, asked.session_id, asked.said.after, asked.said.limit)
        cursor = None if page.next_seq is None else str(page.next_seq)
        return as_json(HistoryList(items=tuple(map(history_item, page.items)), next_cursor=cursor))

    @operation("GET", "/me/attendance", from_query(OwnQuery), Answer("One page", OwnAttendanceList))
    async def read_own_attendance(self, asked: Asked[OwnQuery]) -> web.Response:
        """Read one's own records, newest session first, each with its history."""
        said = asked.said
        page = await self._requests.read_own_records(asked.actor, said.course_id, said.limit, said.cursor)
        return as_json(own_attendance(page))

    @operation(
        "GET",
        "/courses/{course_id}/summary",
        from_query(Nothing),
        Answer("The summary", Summary),
        refusals=("course_not_found",),
    )
    async def read_summary(self, asked: Asked[Nothing]) -> web.Response:
        """Read how often each student of a course was there."""
        return as_json(await self._summary(asked))

    @operation("GET", "/courses/{course_id}/summary.csv", from_query(Nothing), _CSV, refusals=("course_not_found",))
    async def summary_as_csv(self, asked: Asked[Nothing]) -> web.Response:
        """Read a course's summary as a table, CSV."""
        return await self._csv(summary_table(await self._summary(asked)), "summary", asked.course_id)

    @operation("GET", "/courses/{course_id}/summary.xlsx", from_query(Nothing), _XLSX, refusals=("course_not_found",))
    async def summary_as_xlsx(self, asked: Asked[Nothing]) -> web.Response:
        """Read a course's summary as a table, a spreadsheet."""
        return await self._xlsx(summary_table(await self._summary(asked)), "summary", asked.course_id)

    async def _roll_table(self, asked: Asked[Nothing]) -> Table:
        return roll_table(await self._requests.read_roll(asked.actor, asked.session_id, seconds=LONG_SECONDS))

    async def _summary(self, asked: Asked[Nothing]) -> Summary:
        outline = await self._requests.read_outline(asked.actor, asked.course_id)
        return summary(outline, await self._requests.summarize(asked.course_id))

    async def _csv(self, table: Table, kind: str, about: str) -> web.Response:
        return as_file(await asyncio.to_thread(write_csv, table), CSV_TYPE, file_name(kind, about, "csv"))

    async def _xlsx(self, table: Table, kind: str, about: str) -> web.Response:
        """Made in a thread: for 10,000 rows it takes 0.3 s, in which this loop must turn."""
        file = await asyncio.to_thread(write_xlsx, table, self._clock())
        return as_file(file, XLSX_TYPE, file_name(kind, about, "xlsx"))
