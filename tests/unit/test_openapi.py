"""The OpenAPI document: valid, complete, and about the routes that are served and the shapes that are answered."""

import re
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from msgspec import Struct
from openapi_spec_validator import validate

from gateway import answers, views
from gateway.auth import Tokens
from gateway.cuts import Cuts
from gateway.door import Door
from gateway.http import PREFIX, ROUTES, api, description, refusals
from gateway.keys import Secret
from gateway.openapi import Refusal
from gateway.requests import Requests
from gateway.usage import Usage
from shared.clock import utc_now
from shared.errors import CODES, Refused
from shared.messages import MarkStored, OwnRecord, OwnRecords, Submission
from tests.unit.samples import AT, CHANGE, RECORD, ROLL, SESSION, STATISTICS


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """As a client reads it."""
    read: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(description()))
    return read


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Every operation, by method and path."""
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def an_api() -> web.Application:
    """With nothing behind it."""
    door = Door(Tokens(Secret("s" * 32)), cast(Usage, None))
    return api(door, cast(Requests, None), cast(Cuts, None), utc_now)


def served() -> set[tuple[str, str]]:
    """What the application answers to, by method and path; HEAD comes with every GET."""
    app = an_api()
    routes = {(route.method, cast(web.Resource, route.resource).canonical) for route in app.router.routes()}
    return {(method, path) for method, path in routes if method != "HEAD"}


def test_the_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1.")
    assert document["servers"] == [{"url": PREFIX}]


def test_every_route_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    assert set(operations(document)) == served()


def test_every_route_of_the_contract_is_served() -> None:
    course, session = "/courses/{course_id}", "/sessions/{session_id}"
    assert served() == {
        *((method, course) for method in ("PUT", "GET", "DELETE")),
        *((method, f"{course}/roster") for method in ("PUT", "GET")),
        *((method, f"{course}/roster/{{student_id}}") for method in ("POST", "DELETE")),
        *(("GET", f"{course}/summary{ending}") for ending in ("", ".csv", ".xlsx")),
        *((method, session) for method in ("GET", "PATCH")),
        *(("POST", f"{session}/{verb}") for verb in ("start", "end", "cancel", "submit", "reopen")),
        *(("GET", f"{session}/attendance{ending}") for ending in ("", ".csv", ".xlsx")),
        ("PUT", f"{session}/attendance/{{student_id}}"),
        ("GET", f"{session}/history"),
        ("GET", "/courses"),
        ("GET", "/sessions"),
        ("POST", "/sessions"),
        ("GET", "/me/attendance"),
        ("DELETE", "/users/{user_id}/sockets"),
        ("GET", "/openapi.json"),
    }


def test_every_operation_says_what_it_does(document: dict[str, Any]) -> None:
    described = operations(document).values()

    assert all(operation["summary"].endswith(".") for operation in described)
    assert len({operation["operationId"] for operation in described}) == len(described)
    assert {tag for operation in described for tag in operation["tags"]} == {tag["name"] for tag in document["tags"]}


def test_every_place_in_a_path_is_a_parameter(document: dict[str, Any]) -> None:
    for (_, path), operation in operations(document).items():
        named = [each["name"] for each in operation.get("parameters", []) if each["in"] == "path"]
        assert named == re.findall(r"\{(\w+)\}", path)


def test_a_token_is_asked_for_everywhere_but_for_the_document(document: dict[str, Any]) -> None:
    open_to_all = [path for (_, path), operation in operations(document).items() if operation.get("security") == []]

    assert open_to_all == ["/openapi.json"]
    assert document["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


async def test_without_a_token_nothing_else_of_a_request_is_looked_at(document: dict[str, Any]) -> None:
    """Neither ids nor query nor body: whoever is not known learns nothing."""
    app = web.Application(middlewares=[refusals])
    app.add_subapp(PREFIX, an_api())
    async with TestClient(TestServer(app)) as client:
        for method, path in operations(document):
            bad = PREFIX + re.sub(r"\{\w+\}", "%00", path)
            async with client.request(method, bad, params={"limit": "x"}, data=b"{") as response:
                told = await response.json()
                assert (response.status == 200) == (path == "/openapi.json")
                assert path == "/openapi.json" or (response.status, told["error"]["code"]) == (401, "unauthenticated")


def test_every_operation_that_takes_a_token_may_refuse_it(document: dict[str, Any]) -> None:
    for (_, path), operation in operations(document).items():
        if path != "/openapi.json":
            assert {"400", "401", "403", "429", "500", "503", "504"} <= set(operation["responses"])
            assert ("413" in operation["responses"]) == ("requestBody" in operation)


def test_every_code_of_the_contract_is_in_the_shape_of_errors(document: dict[str, Any]) -> None:
    error = document["components"]["schemas"]["Error"]

    assert error["properties"]["code"]["enum"] == list(CODES)
    assert error["required"] == ["code", "message", "retryable"]


def test_every_refusal_stands_under_its_status(document: dict[str, Any]) -> None:
    for operation in operations(document).values():
        for status, answer in operation["responses"].items():
            if answer["content"].get("application/json", {}).get("schema") == {"$ref": "#/components/schemas/Refusal"}:
                codes = re.findall(r"`(\w+)`", answer["description"])
                assert codes
                assert all(str(CODES[code].status) == status for code in codes) or (status, codes) == ("413", ["invalid"])


def test_patterns_and_times_are_said_in_json_schemas_words(document: dict[str, Any]) -> None:
    text = msgspec.json.encode(document).decode()

    assert r"\A" not in text.replace("\\\\", "\\")
    assert document["components"]["schemas"]["Session"]["properties"]["starts_at"] == {"type": "string", "format": "date-time"}
    assert document["components"]["schemas"]["Session"]["properties"]["start_time"] == {"type": "string"}


def test_a_body_may_be_left_out_where_it_has_nothing_to_say(document: dict[str, Any]) -> None:
    required = {
        path: each["requestBody"]["required"] for (_, path), each in operations(document).items() if "requestBody" in each
    }

    assert required["/sessions/{session_id}/reopen"]
    assert required["/courses/{course_id}/roster"]
    assert not required["/sessions/{session_id}/start"]
    assert not required["/courses/{course_id}/roster/{student_id}"]


def test_a_roster_comes_as_json_or_as_csv(document: dict[str, Any]) -> None:
    content = operations(document)[("PUT", "/courses/{course_id}/roster")]["requestBody"]["content"]

    assert set(content) == {"application/json", "text/csv"}
    assert content["text/csv"]["schema"] == {"type": "string"}


@pytest.mark.parametrize("kind", ROUTES)
def test_no_handler_is_without_its_operation(kind: type[Any]) -> None:
    public = {name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}

    assert public == {operation.name for operation in kind.operations()}


SUBMISSION = Submission(
    session_id="5e55", submitted_by="Ada", submitted_by_id="ada", submitted_at=AT, statistics=STATISTICS, seq=7
)
MARK = MarkStored(record=RECORD, statistics=STATISTICS, updated_by="Ada", updated_by_id="ada", updated_at=AT, seq=7)


@pytest.mark.parametrize(
    ("view", "kind"),
    [
        (lambda: views.roll(ROLL), answers.RollAnswer),
        (lambda: views.started(ROLL), answers.Started),
        (lambda: views.ended_confirm(ROLL), answers.Ended),
        (lambda: views.cancelled(SESSION), answers.Cancelled),
        (lambda: views.submitted(SUBMISSION, 7), answers.Submitted),
        (lambda: views.marked(MARK), answers.Marked),
    ],
)
def test_what_the_socket_answers_too_is_described_to_the_letter(view: Callable[[], views.View], kind: type[Struct]) -> None:
    """No key too many, none missing, each of its type."""
    shown = {**view(), "server_time": AT}

    assert msgspec.to_builtins(msgspec.convert(msgspec.to_builtins(shown), kind)) == msgspec.to_builtins(shown)


@pytest.mark.parametrize(
    "refused",
    [
        Refused("forbidden"),
        Refused("rate_limited", retry_after_ms=20),
        Refused("invalid", details=[{"field": "title", "message": "is missing"}, {"line": 2, "message": "no id"}]),
        Refused(
            "conflict", details=[{"field": "expected_seq", "message": "old", "attendanceRecord": msgspec.to_builtins(RECORD)}]
        ),
    ],
)
def test_what_is_refused_is_described_to_the_letter(refused: Refused) -> None:
    shown = {"error": msgspec.to_builtins(views.refusal(refused))}

    assert msgspec.to_builtins(msgspec.convert(shown, Refusal)) == shown


@pytest.mark.parametrize(("wait_ms", "seconds"), [(1, "1"), (1000, "1"), (1001, "2")])
async def test_who_asks_too_often_is_told_how_long_to_wait(wait_ms: int, seconds: str) -> None:
    """To the millisecond in the body, and in the header in whole seconds, never too few."""

    async def refuse(_: web.Request) -> web.Response:
        raise Refused("rate_limited", retry_after_ms=wait_ms)

    app = web.Application(middlewares=[refusals])
    app.add_routes([web.get("/", refuse)])
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        assert (response.status, response.headers["Retry-After"]) == (429, seconds)
        error = (await response.json())["error"]
        assert (error["code"], error["retryable"], error["retry_after_ms"]) == ("rate_limited", True, wait_ms)


def test_history_over_http_has_the_contracts_shape() -> None:
    """Without what a change carries for those who listen."""
    item = msgspec.to_builtins(answers.history_item(CHANGE))

    assert set(msgspec.to_builtins(CHANGE)) - set(item) == {"student_name", "joined_at"}
    assert item == {name: getattr(CHANGE, name) for name in item}


def test_ones_own_records_come_with_their_history() -> None:
    own = OwnRecords(items=(OwnRecord(session=SESSION, record=RECORD, history=(CHANGE,)),), next_cursor="5e55")

    shown = msgspec.to_builtins(answers.own_attendance(own))

    assert shown["next_cursor"] == "5e55"
    [item] = shown["items"]
    assert set(item) == {"session", "attendanceRecord", "history"}
    assert item["history"] == (msgspec.to_builtins(answers.history_item(CHANGE)),)
