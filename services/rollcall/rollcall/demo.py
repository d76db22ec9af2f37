"""The demo course of `rollcall dev`: made over HTTP like any other, from the roster in examples/."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import aiohttp

from gateway.auth import mint
from shared.errors import StartupFailed
from shared.messages import Actor, Role
from shared.settings import Settings

COURSE_ID = "demo"
TEACHER = Actor("t1", "Ada Lovelace", "teacher")
STUDENT: Role = "student"
TOKEN_LIFETIME = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Demo:
    """What the welcome shows."""

    course_id: str
    session_id: str
    students: int
    teacher: Actor
    student: Actor
    teacher_token: str
    student_token: str


def token_for(actor: Actor, settings: Settings, now: datetime, lifetime: timedelta = TOKEN_LIFETIME) -> str:
    """Mint a token that a Rollcall with these settings accepts; unless told otherwise, for a month of trying out."""
    return mint(
        settings.jwt_secret,
        subject=actor.id,
        role=actor.role,
        name=actor.name,
        lifetime=lifetime,
        now=now,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
    )


async def prepare(url: str, settings: Settings, roster: bytes, now: datetime) -> Demo:
    """Make the demo course, its roster and a session to start, as far as they are not there; raise StartupFailed."""
    teacher_token = token_for(TEACHER, settings, now)
    headers = {"Authorization": f"Bearer {teacher_token}"}
    async with aiohttp.ClientSession(f"{url}/api/v1/", headers=headers) as http:
        course = {"title": "Rollcall demo", "teacher_ids": [TEACHER.id], "time_zone": "UTC"}
        await _ask(http, "PUT", f"courses/{COURSE_ID}", json=course)
        csv = {"data": roster, "headers": {"Content-Type": "text/csv"}}
        await _ask(http, "PUT", f"courses/{COURSE_ID}/roster", **csv)
        students = (await _ask(http, "GET", f"courses/{COURSE_ID}/roster", params={"limit": "200"}))["items"]
        query = {"course_id": COURSE_ID, "status": "scheduled", "limit": "1"}
        sessions = (await _ask(http, "GET", "sessions", params=query))["items"]
        session = sessions[0] if sessions else await _ask(http, "POST", "sessions", json=_session(now))
    first = students[0]
    student = Actor(first["student_id"], first["name"], STUDENT)
    return Demo(
        course_id=COURSE_ID,
        session_id=session["id"],
        students=len(students),
        teacher=TEACHER,
        student=student,
        teacher_token=teacher_token,
        student_token=token_for(student, settings, now),
    )


def _session(now: datetime) -> dict[str, Any]:
    return {
        "course_id": COURSE_ID,
        "title": f"Demo lecture of {now:%d %B, %H:%M}",
        "date": f"{now:%Y-%m-%d}",
        "start_time": f"{now:%H:%M}",
        "end_time": f"{now + timedelta(hours=1):%H:%M}",
    }


async def _ask(http: aiohttp.ClientSession, method: str, path: str, **options: Any) -> dict[str, Any]:
    async with http.request(method, path, **options) as response:
        body: dict[str, Any] = await response.json()
    if response.status >= 400:
        raise StartupFailed(f"the demo course cannot be made: {method} {path}: {body['error']['message']}")
    return body
