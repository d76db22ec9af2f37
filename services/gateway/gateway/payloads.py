"""What callers send, described: a payload is read into one of these, or refused as `invalid` with every fault named."""

import csv
import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from shared.errors import Refused
from shared.messages import CheckIn, Student

MAX_PAYLOAD_BYTES: Final = 4 * 1024
MAX_FRAME_BYTES: Final = 256 * 1024
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_STUDENTS: Final = 50_000

Id = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.:-]{1,64}\Z")]
# A NUL is a letter that Postgres cannot store.
Line = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\A[^\x00\r\n]*\Z")]
Text = Annotated[str, Meta(max_length=2000, pattern=r"\A[^\x00]*\Z")]
TimeOfDay = Annotated[str, Meta(pattern=r"\A([01][0-9]|2[0-3]):[0-5][0-9]\Z")]

_ALIASES: Final = {"sessionId": "session_id", "studentId": "student_id", "courseId": "course_id"}
_AT = re.compile(r"^(?P<message>.*?)(?: - at `\$\.?(?P<field>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>.*)`$")
_CSV_COLUMNS: Final = ("student_id", "name", "email", "roll_number")

P = TypeVar("P")


class SessionCommandPayload(Struct, frozen=True, kw_only=True):
    """A command about a session, and nothing else."""

    session_id: Id
    command_id: Id | None = None


class CoursePayload(Struct, frozen=True, kw_only=True):
    """The body of `PUT /courses/{id}`."""

    title: Line
    teacher_ids: Annotated[tuple[Id, ...], Meta(max_length=100)]
    time_zone: Line = "UTC"


class StudentPayload(Struct, frozen=True, kw_only=True):
    """One line of a roster."""

    student_id: Id
    name: Line
    email: Line | None = None
    roll_number: Line | None = None


class SessionPayload(Struct, frozen=True, kw_only=True):
    """The body of `POST /sessions`."""

    course_id: Id
    title: Line
    description: Text | None = None
    date: Line
    start_time: TimeOfDay
    end_time: TimeOfDay
    time_zone: Line | None = None
    meeting_link: Text | None = None
    check_in: CheckIn | None = None


def read_payload(payload: object, kind: type[P]) -> P:
    """Read a client's payload (camelCase ids accepted, unknown keys ignored); raise Refused `invalid` naming the fault."""
    if not isinstance(payload, dict):
        raise invalid("", "the payload must be one object")
    try:
        return msgspec.convert({_ALIASES.get(key, key): value for key, value in payload.items()}, kind)
    except msgspec.ValidationError as error:
        raise _refused(error) from None


def read_body(body: bytes, kind: type[P]) -> P:
    """Read a JSON body; raise Refused `invalid`."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("", "the body is not JSON") from None
    return read_payload(decoded, kind)


def read_session_body(body: bytes) -> SessionPayload:
    """Read the body of `POST /sessions`; `date` comes out as YYYY-MM-DD, from that, an RFC 3339 time or epoch milliseconds."""
    payload = read_body(body, SessionPayload)
    check_in = payload.check_in or CheckIn()
    minutes = (check_in.late_after_minutes, check_in.closes_after_minutes)
    if any(value is not None and not 0 <= value <= 24 * 60 for value in minutes):
        raise invalid("check_in", "minutes must be between 0 and 1440")
    return msgspec.structs.replace(payload, date=_date(payload.date), check_in=check_in)


def read_roster(body: bytes, content_type: str) -> tuple[Student, ...]:
    """Read a whole roster, JSON or CSV; raise Refused `invalid` naming each line (or index) at fault."""
    if content_type == "text/csv":
        students = _csv_students(body)
    else:
        try:
            lines = msgspec.json.decode(body, type=list[StudentPayload])
        except msgspec.ValidationError as error:
            raise _refused(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise invalid("", "the body is not JSON") from None
        students = [(index, line) for index, line in enumerate(lines)]
    if len(students) > MAX_STUDENTS:
        raise invalid("", f"at most {MAX_STUDENTS} students")
    seen: dict[str, int] = {}
    twice: list[Mapping[str, Any]] = []
    for line, student in students:
        if student.student_id in seen:
            message = f"student_id {student.student_id} stands on line {seen[student.student_id]} already"
            twice.append({"line": line, "message": message})
        seen.setdefault(student.student_id, line)
    if twice:
        raise Refused("invalid", details=twice[:100])
    return tuple(
        Student(student_id=each.student_id, name=each.name, email=each.email, roll_number=each.roll_number)
        for _, each in students
    )


def read_number(text: str | None, name: str, *, default: int, most: int) -> int:
    """Read a number from a query."""
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise invalid(name, f"must be a number from 1 to {most}")
    return int(text)


def read_id(text: str, name: str) -> str:
    """Read an id from a path or a query."""
    return _converted(text, Id, name)


def read_line(text: str, name: str) -> str:
    """Read a short text from a header."""
    return _converted(text, Line, name)


def read_cursor(text: str | None) -> str | None:
    """Read a cursor from a query; what it means is the service's affair."""
    return None if text is None else _converted(text, Line, "cursor")


def invalid(field: str, message: str) -> Refused:
    """Say that one field is wrong."""
    return Refused("invalid", f"{field}: {message}" if field else message, details=[{"field": field, "message": message}])


def _converted(text: str, kind: Any, name: str) -> str:
    try:
        return str(msgspec.convert(text, kind))
    except msgspec.ValidationError as error:
        raise invalid(name, str(error)) from None


def _refused(error: msgspec.ValidationError) -> Refused:
    found = _AT.match(str(error))
    message, field = (found["message"], found["field"] or "") if found else (str(error), "")
    if missing := _MISSING.match(message):
        return invalid(".".join(filter(None, (field, missing["field"]))), "is missing")
    return invalid(field, message)


def _date(text: str) -> str:
    try:
        # From eleven digits on it is milliseconds; fewer are a day written too briefly.
        if text.isascii() and text.isdigit() and len(text) > 10:
            return datetime.fromtimestamp(int(text) / 1000, UTC).date().isoformat()
        return datetime.fromisoformat(text).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise invalid("date", "must be a day like 2026-11-24") from None


def _csv_students(body: bytes) -> list[tuple[int, StudentPayload]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise invalid("", "the CSV must be UTF-8") from None
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
    students: list[tuple[int, StudentPayload]] = []
    faults: list[Mapping[str, Any]] = []
    try:
        header = [name.strip().lower() for name in reader.fieldnames or ()]
        if not {"student_id", "name"} <= set(header):
            raise Refused("invalid", details=[{"line": 1, "message": "the header must name student_id and name"}])
        reader.fieldnames = header
        for row in reader:
            values = {name: (row.get(name) or "").strip() or None for name in _CSV_COLUMNS}
            if not any(values.values()):
                continue
            try:
                students.append((reader.line_num, msgspec.convert(values, StudentPayload)))
            except msgspec.ValidationError as error:
                faults.append({"line": reader.line_num, "message": _refused(error).message})
    except csv.Error as error:
        # The DictReader counts a line once it has read it; its reader, when it begins.
        faults.append({"line": reader.reader.line_num, "message": str(error)})
    if faults:
        raise Refused("invalid", details=faults[:100])
    return students
