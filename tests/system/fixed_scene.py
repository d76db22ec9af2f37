"""A scene that callers get everything wrong on, and may not change; and the tokens that are no good."""

import asyncio
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import jwt

from tests.system.rig import SECRET, Rig, token
from tests.system.talk import Lecture, Payload, a_lecture, a_session, an_admin, bearer, calling, http

START, JOIN = "startAttendanceSession", "joinAttendanceSession"
END = "endAttendanceSession"
MEGABYTE = 1024 * 1024
A_DAY_SECONDS = 24 * 3600


@dataclass(frozen=True)
class FixedScene:
    """One course with a session in each state, which no test here may change; Ann has joined, Bob has not."""

    rig: Rig
    lecture: Lecture
    sessions: dict[str, str]
    tokens: dict[str, str]

    @property
    def here(self) -> str:
        """A gateway."""
        return self.rig.gateways[0]

    @property
    def there(self) -> str:
        """The other, where there are two."""
        return self.rig.gateways[1]

    def about(self, state: str) -> Payload:
        """The payload of a command about the session in a state."""
        return {"session_id": self.sessions[state]}

    async def seen(self) -> dict[str, Payload]:
        """What Rollcall knows of the course, of its sessions and of their rolls."""
        course = f"/courses/{self.lecture.course_id}"
        pages = {"course": course, "roster": f"{course}/roster", "sessions": f"/sessions?course_id={self.lecture.course_id}"}
        for state in ("active", "completed"):
            pages[state] = f"/sessions/{self.sessions[state]}/attendance"
        admin = an_admin()
        answers = await asyncio.gather(*(http(self.there, "GET", page, admin) for page in pages.values()))
        assert {status for status, _ in answers} == {200}
        for _, body in answers:
            body.pop("server_time", None)
        return dict(zip(pages, (body for _, body in answers), strict=True))


async def a_fixed_scene(rig: Rig) -> FixedScene:
    """Set it: one session is scheduled, one active, one completed."""
    lecture, elsewhere = await a_lecture(rig.gateways[0], students=2), await a_lecture(rig.gateways[0], students=1)
    ann, bob = lecture.students
    sessions = {"scheduled": lecture.session_id}
    for state in ("active", "completed"):
        sessions[state] = await a_session(rig.gateways[0], lecture.course_id)
    tokens = {
        "admin": an_admin(),
        "service": token("timetable", "service"),
        "teacher": bearer(lecture.teacher, "teacher"),
        "other teacher": bearer(elsewhere.teacher, "teacher"),
        "ann": bearer(ann, "student"),
        "bob": bearer(bob, "student"),
        "other student": bearer(elsewhere.students[0], "student"),
    }
    async with calling(rig.gateways[0], tokens["admin"]) as admin, calling(rig.gateways[1], tokens["ann"]) as student:
        for state in ("active", "completed"):
            assert (await admin.ask(START, {"session_id": sessions[state]}))["ok"]
            assert (await student.ask(JOIN, {"session_id": sessions[state]}))["ok"]
        assert (await admin.ask(END, {"session_id": sessions["completed"]}))["ok"]
    return FixedScene(rig, lecture, sessions, tokens)


def signed(*, secret: str = SECRET, algorithm: str | None = "HS256", seconds: float = A_DAY_SECONDS, **claims: object) -> str:
    """Make a token of these claims; a claim of None is left out. It is made on import and must outlive the run."""
    full = {"sub": "ann", "role": "student", "exp": datetime.now(UTC) + timedelta(seconds=seconds), **claims}
    present = {name: value for name, value in full.items() if value is not None}
    return jwt.encode(present, secret if algorithm != "none" else "", algorithm=algorithm)


BAD_TOKENS: dict[str, tuple[str, str]] = {
    "no JWT": ("rubbish", "unauthenticated"),
    "three dots": ("a.b.c", "unauthenticated"),
    "not ASCII": ("schlüssel.ö.ß", "unauthenticated"),
    "expired": (signed(seconds=-31), "token_expired"),
    "expired and forged": (signed(seconds=-31, secret="x" * 40), "unauthenticated"),
    "another secret": (signed(secret="x" * 40), "unauthenticated"),
    "another algorithm": (signed(algorithm="HS512", secret=SECRET + SECRET), "unauthenticated"),
    "no algorithm": (signed(algorithm="none"), "unauthenticated"),
    "not yet": (signed(nbf=datetime.now(UTC) + timedelta(hours=12)), "unauthenticated"),
    "no exp": (signed(exp=None), "unauthenticated"),
    "no sub and no uid": (signed(sub=None), "unauthenticated"),
    "a sub that is no id": (signed(sub="ann and bob"), "unauthenticated"),
    "an empty uid": (signed(sub=None, uid=""), "unauthenticated"),
    "no role": (signed(role=None), "unauthenticated"),
    "an unknown role": (signed(role="headmaster"), "unauthenticated"),
    "a role that is no string": (signed(role=["admin"]), "unauthenticated"),
    "a header nested without end": (b64encode(b"[" * 6000).decode() + ".e30.x", "unauthenticated"),
}
