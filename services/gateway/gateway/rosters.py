"""Rosters as callers bring them, JSON or CSV: read whole, or refused with every line at fault."""

import csv
import io
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from gateway.payloads import Id, Line, invalid, refused
from shared.errors import Refused
from shared.messages import Student

MAX_STUDENTS: Final = 50_000
MAX_ROSTER_BYTES: Final = 8 * 1024 * 1024
_MAX_FAULTS: Final = 100
"""As many are named as anybody reads; after that a roster is not read on."""
_CSV_COLUMNS: Final = ("student_id", "name", "email", "roll_number")


class StudentPayload(Struct, frozen=True, kw_only=True):
    """One line of a roster."""

    student_id: Id
    name: Line
    email: Line | None = None
    roll_number: Line | None = None


def read_roster(body: bytes, content_type: str) -> tuple[Student, ...]:
    """Read a whole roster, JSON or CSV; raise Refused `invalid` naming each line (or index) at fault."""
    if content_type == "text/csv":
        students = _csv_students(body)
    else:
        try:
            # Counted before they are read: of what is far too much that would stop every thread for a second.
            if len(msgspec.json.decode(body, type=list[Raw])) > MAX_STUDENTS:
                raise _too_many()
            lines = msgspec.json.decode(body, type=list[StudentPayload])
        except msgspec.ValidationError as error:
            raise refused(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise invalid("", "the body is not JSON") from None
        students = [(index, line) for index, line in enumerate(lines)]
    seen: dict[str, int] = {}
    twice: list[Mapping[str, Any]] = []
    for line, student in students:
        if student.student_id in seen:
            message = f"student_id {student.student_id} stands on line {seen[student.student_id]} already"
            twice.append({"line": line, "message": message})
            if len(twice) == _MAX_FAULTS:
                break
        seen.setdefault(student.student_id, line)
    if twice:
        raise Refused("invalid", details=twice)
    return tuple(
        Student(student_id=each.student_id, name=each.name, email=each.email, roll_number=each.roll_number)
        for _, each in students
    )


def _csv_students(body: bytes) -> list[tuple[int, StudentPayload]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise invalid("", "the CSV must be UTF-8") from None
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
    students: list[tuple[int, StudentPayload]] = []
    faults: list[Mapping[str, Any]] = []
    try:
        header = {name.strip().lower(): column for column, name in enumerate(next(reader, ()))}
        if not {"student_id", "name"} <= header.keys():
            raise Refused("invalid", details=[{"line": 1, "message": "the header must name student_id and name"}])
        columns = {name: header[name] for name in _CSV_COLUMNS if name in header}
        for number, row in enumerate(reader, 1):
            # Lines that say nothing cost their time, too.
            if number > MAX_STUDENTS:
                raise _too_many()
            values = {name: row[column].strip() or None for name, column in columns.items() if column < len(row)}
            if not any(values.values()):
                continue
            try:
                students.append((reader.line_num, msgspec.convert(values, StudentPayload)))
            except msgspec.ValidationError as error:
                faults.append({"line": reader.line_num, "message": refused(error).message})
                if len(faults) == _MAX_FAULTS:
                    break
    except csv.Error as error:
        faults.append({"line": reader.line_num, "message": str(error)})
    if faults:
        raise Refused("invalid", details=faults)
    return students


def _too_many() -> Refused:
    return invalid("", f"at most {MAX_STUDENTS} students, empty lines counted")
