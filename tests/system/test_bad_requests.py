"""What callers get wrong over HTTP: refused with the contract's code, on both deployments, and without a trace."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest

from shared.messages import Role
from tests.system.fixed_scene import BAD_TOKENS, MEGABYTE, FixedScene
from tests.system.rig import Rig, token, unique
from tests.system.talk import Payload, a_lecture, an_admin, bearer, http


@dataclass(frozen=True)
class Request:
    """A request that is refused. `{course}` and the like in the path stand for the scene's; `at` is what the details name."""

    method: str
    path: str
    status: int
    code: str
    at: str | None = None
    who: str = "admin"
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.options} by {self.who}"[:120]


COURSE = {"title": "Algorithms", "teacher_ids": ["t1"], "time_zone": "UTC"}


def putting_course(status: int, code: str, at: str | None = None, who: str = "admin", **changes: Any) -> Request:
    """Change the scene's course, wrongly."""
    body = {name: value for name, value in {**COURSE, **changes}.items() if value is not ...}
    return Request("PUT", "/courses/{course}", status, code, at, who, {"json": body})


def making_session(status: int, code: str, at: str | None = None, who: str = "admin", **changes: Any) -> Request:
    """Schedule a session, wrongly."""
    body = {
        "course_id": "{course}",
        "title": "Sorting",
        "date": "2026-11-24",
        "start_time": "10:00",
        "end_time": "11:30",
        **changes,
    }
    return Request("POST", "/sessions", status, code, at, who, {"json": {k: v for k, v in body.items() if v is not ...}})


def putting_roster(at: str | None, body: object, **options: object) -> Request:
    """Replace the scene's roster, wrongly."""
    given = {"data": body} if isinstance(body, bytes) else {"json": body}
    return Request("PUT", "/courses/{course}/roster", 400, "invalid", at, options={**given, **options})


def changing_session(at: str, **changes: Any) -> Request:
    """Change a session of the scene, wrongly."""
    return Request("PATCH", "/sessions/{scheduled}", 400, "invalid", at, options={"json": changes})


CSV = {"headers": {"Content-Type": "text/csv"}}
EVERYWHERE = (
    ("PUT", "/courses/{course}"),
    ("GET", "/courses/{course}"),
    ("GET", "/courses"),
    ("PUT", "/courses/{course}/roster"),
    ("GET", "/courses/{course}/roster"),
    ("POST", "/sessions"),
    ("GET", "/sessions"),
    ("GET", "/sessions/{active}"),
    ("POST", "/sessions/{scheduled}/start"),
    ("POST", "/sessions/{active}/end"),
    ("GET", "/sessions/{active}/attendance"),
)
REQUESTS = (
    Request("GET", "/nothing", 404, "not_found"),
    Request("GET", "/courses/a/b/c", 404, "not_found"),
    Request("POST", "/sessions/{active}/start/", 404, "not_found"),
    Request("PATCH", "/courses", 405, "not_found"),
    Request("GET", "/sessions/{active}/start", 405, "not_found"),
    # Ids
    *(
        Request(method, f"/courses/{bad}{rest}", 400, "invalid", "course_id", options=options)
        for bad in ("a%20b", "%00", "%C3%A9", "x" * 65, "a%0A")
        for method, rest, options in (("GET", "", {}), ("PUT", "", {"json": COURSE}), ("GET", "/roster", {}))
    ),
    *(Request("GET", f"/sessions/{bad}", 400, "invalid", "session_id") for bad in ("a%20b", "%00", "x" * 65)),
    Request("POST", "/sessions/%00/start", 400, "invalid", "session_id"),
    Request("GET", "/sessions?course_id=a%20b", 400, "invalid", "course_id"),
    # What is not there
    *(Request("GET", path, 404, "course_not_found") for path in ("/courses/none", "/courses/none/roster")),
    Request("PUT", "/courses/none/roster", 404, "course_not_found", options={"json": []}),
    Request("GET", "/sessions?course_id=none", 404, "course_not_found"),
    making_session(404, "course_not_found", course_id="none"),
    *(Request("GET", f"/sessions/none{rest}", 404, "session_not_found") for rest in ("", "/attendance")),
    *(Request("POST", f"/sessions/none/{verb}", 404, "session_not_found") for verb in ("start", "end")),
    # Who may
    putting_course(403, "forbidden", who="other teacher"),
    putting_course(403, "forbidden", who="ann"),
    putting_course(403, "forbidden", who="service"),
    *(
        Request("PUT", "/courses/new", 403, "forbidden", who=who, options={"json": COURSE})
        for who in ("ann", "teacher", "service")
    ),
    *(
        Request("PUT", "/courses/{course}/roster", 403, "forbidden", who=who, options={"json": []})
        for who in ("ann", "other teacher", "service")
    ),
    *(Request("GET", "/courses/{course}/roster", 403, "forbidden", who=who) for who in ("ann", "other teacher")),
    *(making_session(403, "forbidden", who=who) for who in ("ann", "other teacher", "service")),
    *(
        Request(method, path, 403, "forbidden", who=who)
        for method, path in EVERYWHERE[-3:]
        for who in ("ann", "other student", "other teacher")
    ),
    # When
    Request("GET", "/sessions/{scheduled}/attendance", 409, "session_not_active"),
    Request("POST", "/sessions/{scheduled}/end", 409, "session_not_active"),
    Request("POST", "/sessions/{completed}/start", 409, "session_completed"),
    # Bodies
    *(
        Request(method, path, 400, "invalid", options={"data": body})
        for method, path in (EVERYWHERE[0], EVERYWHERE[3], EVERYWHERE[5])
        for body in (b"", b"{", b"\xff\xfe", b"null", b'"text"', b"5", b"[" * 50_000, b'{"title": "\xff"}', b"NaN")
    ),
    *(
        putting_course(400, "invalid", at, "admin", **{name: value})
        for name, value, at in (
            ("title", ..., "title"),
            ("title", 5, "title"),
            ("title", "", "title"),
            ("title", "a\0b", "title"),
            ("title", "x" * 201, "title"),
            ("teacher_ids", ..., "teacher_ids"),
            ("teacher_ids", "t1", "teacher_ids"),
            ("teacher_ids", ["t1", 5], "teacher_ids[1]"),
            ("teacher_ids", ["t 1"], "teacher_ids[0]"),
            ("teacher_ids", ["t1"] * 101, "teacher_ids"),
            ("time_zone", "Mars/Olympus", "time_zone"),
            ("time_zone", "../../etc/passwd", "time_zone"),
            ("time_zone", "Europe", "time_zone"),
            ("time_zone", None, "time_zone"),
        )
    ),
    *(
        making_session(400, "invalid", at, "admin", **{name: value})
        for name, value, at in (
            ("course_id", ..., "course_id"),
            ("course_id", "a b", "course_id"),
            ("title", ..., "title"),
            ("title", ["Sorting"], "title"),
            ("description", "x" * 2001, "description"),
            ("date", ..., "date"),
            ("date", "tomorrow", "date"),
            ("date", "2026-02-30", "date"),
            ("date", 20261124, "date"),
            ("date", "9" * 30, "date"),
            ("start_time", "24:00", "start_time"),
            ("start_time", "9:00", "start_time"),
            ("end_time", ..., "end_time"),
            ("end_time", "later", "end_time"),
            ("end_time", "11:60", "end_time"),
            ("end_time", 1130, "end_time"),
            ("end_time", "10:00", "end_time"),
            ("time_zone", "Mars/Olympus", "time_zone"),
            ("time_zone", "/etc/localtime", "time_zone"),
            ("time_zone", "a\0b", "time_zone"),
            ("check_in", 5, "check_in"),
            ("check_in", {"late_after_minutes": -1}, "check_in"),
            ("check_in", {"late_after_minutes": 1441}, "check_in"),
            ("check_in", {"closes_after_minutes": 10**9}, "check_in"),
            ("check_in", {"late_after_minutes": "ten"}, "check_in.late_after_minutes"),
            ("check_in", {"late_after_minutes": 1.5}, "check_in.late_after_minutes"),
        )
    ),
    *(
        Request("POST", "/sessions", 400, "invalid", "Idempotency-Key", options={"headers": {"Idempotency-Key": key}, **given})
        for key in ("", "x" * 201)
        for given in (making_session(400, "invalid").options,)
    ),
    *(
        changing_session(at, **{name: value})
        for name, value, at in (
            ("title", None, "title"),
            ("title", "", "title"),
            ("title", 5, "title"),
            ("title", "x" * 201, "title"),
            ("title", "a\nb", "title"),
            ("description", 5, "description"),
            ("description", "x" * 2001, "description"),
            ("description", "a\0b", "description"),
            ("date", None, "date"),
            ("date", "tomorrow", "date"),
            ("date", "2026-02-30", "date"),
            ("start_time", None, "start_time"),
            ("start_time", "24:00", "start_time"),
            ("start_time", "11:30", "end_time"),
            ("end_time", "10:00", "end_time"),
            ("end_time", 1130, "end_time"),
            ("time_zone", None, "time_zone"),
            ("time_zone", "Mars/Olympus", "time_zone"),
            ("meeting_link", ["x"], "meeting_link"),
            ("meeting_link", "x" * 2001, "meeting_link"),
            ("check_in", None, "check_in"),
            ("check_in", [], "check_in"),
            ("check_in", {"late_after_minutes": -1}, "check_in"),
            ("check_in", {"closes_after_minutes": 1441}, "check_in"),
            ("check_in", {"late_after_minutes": "ten"}, "check_in.late_after_minutes"),
            ("check_in", {"closes_after_minutes": 1.5}, "check_in.closes_after_minutes"),
        )
    ),
    *(
        Request("PATCH", "/sessions/{scheduled}", 400, "invalid", options={"data": body})
        for body in (b"{", b"\xff\xfe", b"null", b"[]", b'"text"', b"[" * 50_000)
    ),
    Request("PATCH", "/sessions/none", 404, "session_not_found", options={"json": {"title": "T"}}),
    Request("PATCH", "/sessions/{completed}", 409, "session_completed", options={"json": {"title": "T"}}),
    *(
        Request("PATCH", "/sessions/{scheduled}", 403, "forbidden", who=who, options={"json": {"title": "T"}})
        for who in ("ann", "other teacher", "service")
    ),
    # Rosters
    putting_roster(None, {"student_id": "s1", "name": "Ann"}),
    putting_roster("[1].student_id", [{"student_id": "s1", "name": "Ann"}, {"student_id": "s 2", "name": "Bob"}]),
    putting_roster("[0].name", [{"student_id": "s1"}]),
    putting_roster("[0].name", [{"student_id": "s1", "name": 5}]),
    putting_roster("line 2", [{"student_id": each, "name": "Ann"} for each in ("s1", "s2", "s1")]),
    putting_roster("line 4", b"student_id,name\ns1,Ann\ns2,Bob\ns1,Ann\n", **CSV),
    putting_roster("line 3", b"student_id,name\ns1,Ann\ns 2,Bob\n", **CSV),
    putting_roster("line 3", b"student_id,name\r\ns1,Ann\r\n,Bob\r\n", **CSV),
    putting_roster("line 2", b'student_id,name\ns1,"Ann\n', **CSV),
    putting_roster("line 1", b"id,name\ns1,Ann\n", **CSV),
    putting_roster("line 1", b"", **CSV),
    putting_roster("", b"student_id,name\ns1,\xff\n", **CSV),
    # Pages
    *(
        Request("GET", f"{path}{'&' if '?' in path else '?'}limit={limit}", 400, "invalid", "limit")
        for path in ("/courses", "/courses/{course}/roster", "/sessions?course_id={course}")
        for limit in ("0", "201", "-1", "ten", "", "1.5", "9" * 30, "%C2%B2")
    ),
    *(
        Request("GET", f"{path}{'&' if '?' in path else '?'}cursor={cursor}", 400, "invalid", "cursor")
        for path in ("/courses", "/courses/{course}/roster", "/sessions?course_id={course}")
        for cursor in ("", "%00", "x" * 201)
    ),
    Request("GET", "/sessions?course_id={course}&status=late", 400, "invalid", "status"),
)


def filled(value: Any, places: dict[str, str]) -> Any:
    """Put the scene's ids in."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda place: places[place[1]], value)
    if isinstance(value, dict):
        return {key: filled(each, places) for key, each in value.items()}
    return value


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
async def test_a_request_that_is_wrong_is_refused(fixed_scene: FixedScene, request_: Request) -> None:
    places = {"course": fixed_scene.lecture.course_id, **fixed_scene.sessions}
    path, options = filled(request_.path, places), filled(request_.options, places)

    status, body = await http(fixed_scene.here, request_.method, path, fixed_scene.tokens[request_.who], **options)

    error = body["error"]
    assert (status, error["code"]) == (request_.status, request_.code), error
    assert body == {"error": error}
    assert set(error) <= {"code", "message", "retryable", "details"}
    assert error["message"]
    assert error["retryable"] is False
    if request_.at is not None:
        named = [f"line {each['line']}" if "line" in each else each["field"] for each in error["details"]]
        assert named == [request_.at]


AUTHORIZATIONS: dict[str, tuple[dict[str, str], str]] = {
    "no header": ({}, "unauthenticated"),
    "another scheme": ({"Authorization": "Basic YTpi"}, "unauthenticated"),
    "no token": ({"Authorization": "Bearer "}, "unauthenticated"),
    **{name: ({"Authorization": f"Bearer {bad}"}, code) for name, (bad, code) in BAD_TOKENS.items()},
}


@pytest.mark.parametrize("case", AUTHORIZATIONS)
async def test_a_request_without_a_good_token_is_refused(fixed_scene: FixedScene, case: str) -> None:
    """Whatever is asked for, and before anything of it is looked at."""
    headers, code = AUTHORIZATIONS[case]
    places = {"course": fixed_scene.lecture.course_id, **fixed_scene.sessions}
    answers = await asyncio.gather(
        *(http(fixed_scene.here, method, filled(path, places), headers=headers, data=b"{") for method, path in EVERYWHERE)
    )
    assert {(status, body["error"]["code"]) for status, body in answers} == {(401, code)}


@pytest.mark.parametrize(("method", "path", "mebibytes"), [(*EVERYWHERE[3], 8), (*EVERYWHERE[5], 1)])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_above_1_mib_is_refused_and_a_roster_above_8(
    fixed_scene: FixedScene, method: str, path: str, mebibytes: int, announced: bool
) -> None:
    """Whether its length is announced or not."""
    line = b'{"student_id": "s1", "name": "Ann"},'
    whole = b"[" + line * (mebibytes * MEGABYTE // len(line) + 1)

    async def in_parts() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), MEGABYTE):
            yield whole[start : start + MEGABYTE]

    body = whole if announced else in_parts()
    answer = await http(
        fixed_scene.here,
        method,
        filled(path, {"course": fixed_scene.lecture.course_id}),
        fixed_scene.tokens["admin"],
        data=body,
    )
    assert (answer[0], answer[1]["error"]["code"]) == (413, "invalid")
    assert str(mebibytes * MEGABYTE) in answer[1]["error"]["message"]


async def test_the_roster_of_who_may_never_put_one_is_not_even_read(fixed_scene: FixedScene) -> None:
    path = f"/courses/{fixed_scene.lecture.course_id}/roster"
    for role in get_args(Role):
        status, body = await http(fixed_scene.here, "PUT", path, token(unique("who"), role), data=b"{")
        expected = (400, "invalid") if role in ("teacher", "admin") else (403, "forbidden")
        assert (status, body["error"]["code"]) == expected


async def test_the_same_idempotency_key_makes_one_session(rig: Rig) -> None:
    """And another body with it is a conflict; another person's same key is another key."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=0)
    teacher, admin = bearer(lecture.teacher, "teacher"), an_admin()
    key = {"Idempotency-Key": unique("key")}
    session = {
        "course_id": lecture.course_id,
        "title": "Sorting",
        "date": "2026-11-25",
        "start_time": "10:00",
        "end_time": "11:30",
    }

    async def make(url: str, bearer: str, **changes: str) -> tuple[int, Payload]:
        return await http(url, "POST", "/sessions", bearer, json={**session, **changes}, headers=key)

    answers = await asyncio.gather(*(make(url, teacher) for url in (here, there, here, there)))
    other_body = await make(there, teacher, title="Searching")
    other_person = await make(there, admin)

    assert {status for status, _ in answers} == {201}
    assert len({body["id"] for _, body in answers}) == 1
    assert (other_body[0], other_body[1]["error"]["code"]) == (409, "conflict")
    assert other_person[0] == 201
    assert other_person[1]["id"] != answers[0][1]["id"]
    _, page = await http(here, "GET", f"/sessions?course_id={lecture.course_id}", admin)
    assert len(page["items"]) == 3
