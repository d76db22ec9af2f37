"""What callers send, described: a payload is read into one of these, or refused as `invalid` with every fault named."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from shared.errors import Refused
from shared.messages import CheckIn, CheckInPatch, Status

MAX_PAYLOAD_BYTES: Final = 4 * 1024
MAX_BULK_BYTES: Final = 256 * 1024
MAX_FRAME_BYTES: Final = MAX_BULK_BYTES + 1024
"""The largest payload, with its namespace and its event's name around it."""
MAX_BODY_BYTES: Final = 1024 * 1024
"""As much as a body over HTTP may have, unless its operation says otherwise."""

Id = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.:-]{1,64}\Z")]
# A NUL is a letter that Postgres cannot store.
Line = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"\A[^\x00\r\n]*\Z")]
Text = Annotated[str, Meta(max_length=2000, pattern=r"\A[^\x00]*\Z")]
Reason = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"\A[^\x00]*[^\s\x00][^\x00]*\Z")]
Seq = Annotated[int, Meta(ge=0, le=2**53)]
TimeOfDay = Annotated[str, Meta(pattern=r"\A([01][0-9]|2[0-3]):[0-5][0-9]\Z")]
Day = Annotated[Line, Meta(description="A day: 2026-11-24, an RFC 3339 time, or epoch milliseconds.")]

_ALIASES: Final = {"sessionId": "session_id", "studentId": "student_id", "courseId": "course_id"}
_AT = re.compile(r"^(?P<message>.*?)(?: - at `\$\.?(?P<field>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>.*)`$")

P = TypeVar("P")


class CommandPayload(Struct, frozen=True, kw_only=True):
    """What every command may say. `about` is what it is about: commands about the same thing are done in order."""

    command_id: Id | None = None

    @property
    def about(self) -> str:
        """The id of the session or course, empty for neither."""
        return ""


class SessionCommandPayload(CommandPayload, frozen=True, kw_only=True):
    """A command about a session, and nothing else."""

    session_id: Id

    @property
    def about(self) -> str:
        """The session."""
        return self.session_id


class StudentCommandPayload(SessionCommandPayload, frozen=True, kw_only=True):
    """`clearStudentMark`: a command about one student's record."""

    student_id: Id
    reason: Reason | None = None


class MarkAsPayload(StudentCommandPayload, frozen=True, kw_only=True):
    """`markStudentPresent` and its sisters. Remarks that are not there stay; those that are null are taken away."""

    remarks: Text | UnsetType | None = UNSET
    expected_seq: Seq | None = None


class MarkPayload(MarkAsPayload, frozen=True, kw_only=True):
    """`markStudentAttendance`."""

    status: Status


class UpdatePayload(Struct, frozen=True, kw_only=True):
    """One row of a bulk."""

    student_id: Id
    status: Status
    remarks: Text | UnsetType | None = UNSET


class BulkPayload(SessionCommandPayload, frozen=True, kw_only=True):
    """`bulkUpdateAttendance`."""

    updates: Annotated[tuple[UpdatePayload, ...], Meta(min_length=1, max_length=1000)] = field(name="attendanceUpdates")
    reason: Reason | None = None


class SyncPayload(SessionCommandPayload, frozen=True, kw_only=True):
    """`syncAttendanceSession`."""

    since_seq: Seq | None = None


class ReopenPayload(SessionCommandPayload, frozen=True, kw_only=True):
    """`reopenAttendanceSession`."""

    reason: Reason


class CourseCommandPayload(CommandPayload, frozen=True, kw_only=True):
    """A command about a course, and nothing else."""

    course_id: Id

    @property
    def about(self) -> str:
        """The course."""
        return self.course_id


class RefreshPayload(CommandPayload, frozen=True, kw_only=True):
    """`refreshToken`."""

    token: str


class CommandBody(Struct, frozen=True, kw_only=True):
    """The body of a command over HTTP, which may be left out."""

    command_id: Id | None = None


class ReopenBody(CommandBody, frozen=True, kw_only=True):
    """The body of `reopen`."""

    reason: Reason


class MarkBody(CommandBody, frozen=True, kw_only=True):
    """A mark. Remarks that are not there stay; those that are null are taken away."""

    status: Status
    remarks: Text | UnsetType | None = UNSET
    reason: Reason | None = None
    expected_seq: Seq | None = None


class StudentBody(Struct, frozen=True, kw_only=True):
    """The body of `POST /courses/{id}/roster/{student_id}`, which may be left out."""

    name: Line | None = None
    email: Line | None = None
    roll_number: Line | None = None


class CoursePayload(Struct, frozen=True, kw_only=True):
    """The body of `PUT /courses/{id}`."""

    title: Line
    teacher_ids: Annotated[tuple[Id, ...], Meta(max_length=100)]
    time_zone: Line = "UTC"


class SessionPayload(Struct, frozen=True, kw_only=True):
    """The body of `POST /sessions`."""

    course_id: Id
    title: Line
    description: Text | None = None
    date: Day
    start_time: TimeOfDay
    end_time: TimeOfDay
    time_zone: Line | None = None
    meeting_link: Text | None = None
    check_in: CheckIn | None = None


class SessionPatch(Struct, frozen=True, kw_only=True):
    """The body of `PATCH /sessions/{id}`: what is not there stays as it is."""

    title: Line | UnsetType = UNSET
    description: Text | UnsetType | None = UNSET
    date: Day | UnsetType = UNSET
    start_time: TimeOfDay | UnsetType = UNSET
    end_time: TimeOfDay | UnsetType = UNSET
    time_zone: Line | UnsetType = UNSET
    meeting_link: Text | UnsetType | None = UNSET
    check_in: CheckInPatch | UnsetType = UNSET


def read_payload(payload: object, kind: type[P]) -> P:
    """Read a client's payload (camelCase ids accepted, unknown keys ignored); raise Refused `invalid` naming the fault."""
    if not isinstance(payload, dict):
        raise invalid("", "the payload must be one object")
    try:
        return msgspec.convert(_named(payload), kind)
    except msgspec.ValidationError as error:
        raise refused(error) from None


def _named(payload: dict[Any, Any]) -> dict[Any, Any]:
    """Give every key its one name, in the rows of a bulk too."""
    if not _ALIASES.keys().isdisjoint(payload):
        payload = {_ALIASES.get(key, key): value for key, value in payload.items()}
    if isinstance(rows := payload.get("attendanceUpdates"), list):
        payload = {**payload, "attendanceUpdates": [_named(row) if isinstance(row, dict) else row for row in rows]}
    return payload


def read_body(body: bytes, kind: type[P]) -> P:
    """Read a JSON body, an empty one as an empty object; raise Refused `invalid`."""
    try:
        decoded = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("", "the body is not JSON") from None
    return read_payload(decoded, kind)


def read_session_body(body: bytes) -> SessionPayload:
    """Read the body of `POST /sessions`; `date` comes out as YYYY-MM-DD, from that, an RFC 3339 time or epoch milliseconds."""
    payload = read_body(body, SessionPayload)
    check_in = payload.check_in or CheckIn()
    _check_minutes(check_in)
    return msgspec.structs.replace(payload, date=_date(payload.date), check_in=check_in)


def read_session_patch(body: bytes) -> SessionPatch:
    """Read the body of `PATCH /sessions/{id}`; `date` as in `read_session_body`."""
    patch = read_body(body, SessionPatch)
    if isinstance(patch.check_in, CheckInPatch):
        _check_minutes(patch.check_in)
    return patch if isinstance(patch.date, UnsetType) else msgspec.structs.replace(patch, date=_date(patch.date))


def read_id(text: str, name: str) -> str:
    """Read an id from a path or a query."""
    return _converted(text, Id, name)


def read_line(text: str, name: str) -> str:
    """Read a short text from a header."""
    return _converted(text, Line, name)


def invalid(field: str, message: str) -> Refused:
    """Say that one field is wrong."""
    return Refused("invalid", f"{field}: {message}" if field else message, details=[{"field": field, "message": message}])


def _converted(text: str, kind: Any, name: str) -> str:
    try:
        # What was not UTF-8 in a header reaches us as halves of letters, which nobody can send on.
        return str(msgspec.convert(text.encode().decode(), kind))
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise invalid(name, str(error)) from None


def refused(error: msgspec.ValidationError) -> Refused:
    """Say in the contract's words what msgspec found wrong, and where."""
    found = _AT.match(str(error))
    message, field = (found["message"], found["field"] or "") if found else (str(error), "")
    if missing := _MISSING.match(message):
        return invalid(".".join(filter(None, (field, missing["field"]))), "is missing")
    return invalid(field, message)


def _check_minutes(check_in: CheckIn | CheckInPatch) -> None:
    for minutes in (check_in.late_after_minutes, check_in.closes_after_minutes):
        if isinstance(minutes, int) and not 0 <= minutes <= 24 * 60:
            raise invalid("check_in", "minutes must be between 0 and 1440")


def _date(text: str) -> str:
    try:
        # From eleven digits on it is milliseconds; fewer are a day written too briefly.
        if text.isascii() and text.isdigit() and len(text) > 10:
            return datetime.fromtimestamp(int(text) / 1000, UTC).date().isoformat()
        return datetime.fromisoformat(text).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise invalid("date", "must be a day like 2026-11-24") from None
