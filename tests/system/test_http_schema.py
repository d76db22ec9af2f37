"""The gateway against its own OpenAPI document: made-up requests, and answers that must be what the document promises."""

import asyncio
from copy import deepcopy
from typing import Any
from zlib import crc32

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.http import PREFIX, description
from tests.system.rig import Rig, token
from tests.system.talk import Lecture, a_lecture, an_admin, http

EXAMPLES = 12
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DOCUMENT = description()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SCHEMA.config.generation.update(deterministic=True, max_examples=EXAMPLES)


@pytest.fixture
def lecture(rig: Rig) -> Lecture:
    """Something to ask about: a course and a roll that is open."""

    async def opened() -> Lecture:
        lecture = await a_lecture(rig.gateways[0], students=2)
        status, body = await http(rig.gateways[0], "POST", f"/sessions/{lecture.session_id}/start", an_admin())
        assert status == 200, body
        return lecture

    return asyncio.run(opened())


def about(case: Case[Any], lecture: Lecture) -> Case[Any]:
    """Let every other request be about what there is, on a day that is one."""
    places = {"course_id": lecture.course_id, "session_id": lecture.session_id, "student_id": lecture.students[0]}
    if crc32(repr((case.path_parameters, case.body)).encode()) % 2:
        case.path_parameters.update({name: places[name] for name in case.path_parameters if name in places})
        if isinstance(case.body, dict):
            known = {**places, "date": "2026-11-24"}
            case.body.update({name: known[name] for name in case.body if name in known})
    return case


def answered(case: Case[Any], url: str) -> None:
    """Send a request as an admin; fail when its answer breaks the document's promise."""
    case.call_and_validate(
        base_url=f"{url}{PREFIX}", headers={"Authorization": f"Bearer {token('admin', 'admin')}"}, checks=CHECKS, timeout=10
    )


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_what_the_document_promises(case: Case[Any], rig: Rig, lecture: Lecture) -> None:
    answered(about(case, lecture), rig.gateways[0])


def test_an_answer_that_is_not_what_the_document_promises_is_found(lecture: Lecture, rig: Rig) -> None:
    """The test above can fail: here a course is promised to say something that no course says."""
    promising = deepcopy(DOCUMENT)
    promising["components"]["schemas"]["Course"]["required"].append("motto")
    asked = schemathesis.openapi.from_dict(promising)["/courses/{course_id}"]["GET"].Case(
        path_parameters={"course_id": lecture.course_id}
    )
    kept = SCHEMA["/courses/{course_id}"]["GET"].Case(path_parameters={"course_id": lecture.course_id})

    with pytest.raises(FailureGroup, match="motto"):
        answered(asked, rig.gateways[0])
    answered(kept, rig.gateways[0])
