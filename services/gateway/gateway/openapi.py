"""The OpenAPI 3.1 document, made from the operations themselves and the structs they read and answer with. Pure.

An `Operation` is what serves a route and what describes it, so neither can be without the other.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway.payloads import MAX_BODY_BYTES, Id, Line, read_body
from gateway.queries import read_query
from shared.errors import CODES
from shared.messages import Record, Role

P = TypeVar("P")
S = TypeVar("S", bound=Struct)

JSON: Final = "application/json"
_COMPONENTS: Final = "#/components/schemas/{name}"
_TEXT: Final = {"type": "string"}
_TIMES: Final = re.compile("at|.*_at|server_time")
_MET_EVERYWHERE: Final = (
    "invalid",
    "unauthenticated",
    "token_expired",
    "forbidden",
    "rate_limited",
    "internal",
    "unavailable",
    "timeout",
)
_ABOUT: Final = (
    "Student attendance, live. Every caller bears a JWT. Ids are opaque strings; times are RFC 3339, UTC. "
    "Lists come in pages: while `next_cursor` is not null, it is the `cursor` of the next. "
    "Sending a command again is always safe; with the same `command_id` it is done once and answered alike. "
    "Commands may also be sent over Socket.IO, which tells everybody else what they did."
)


class Fault(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is wrong, by field or by line; a `conflict` on a mark comes with the record as it is."""

    message: str
    field: str | None = None
    line: int | None = None
    record: Record | None = msgspec.field(name="attendanceRecord", default=None)


class Error(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was refused. Retryable means that the same request, sent again (after so long), may succeed."""

    code: str
    message: str
    retryable: bool
    retry_after_ms: int | UnsetType = UNSET
    details: tuple[Fault, ...] = ()


class Refusal(Struct, frozen=True, kw_only=True):
    """The body of every answer that is no success."""

    error: Error


@dataclass(frozen=True)
class Takes(Generic[P]):
    """What an operation takes: from the query, or from the body by content type (None: text of that type).

    What may be larger than other bodies is read in a thread: it takes longer than the loop can be kept from turning.
    """

    read: Callable[[Mapping[str, str], bytes, str], P]
    query: type[Struct] | None = None
    bodies: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False
    max_bytes: int = MAX_BODY_BYTES


@dataclass(frozen=True)
class Answer:
    """What an operation answers: a type, written as JSON, or (None) a file of this content type."""

    description: str
    kind: Any
    content_type: str = JSON


@dataclass(frozen=True)
class Operation:
    """One method of one path. `refusals` are the codes it may meet besides those that all may meet.

    Who has none of the `roles` is refused before a body is read: a role that may never do it, on whatever course.
    """

    method: str
    path: str
    name: str
    summary: str
    takes: Takes[Any]
    answers: Mapping[int, Answer]
    tag: str = ""
    refusals: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    roles: tuple[Role, ...] = get_args(Role)
    public: bool = False

    @property
    def ids(self) -> list[str]:
        """The ids in its path."""
        return re.findall(r"\{(\w+)\}", self.path)


def from_query(kind: type[S]) -> Takes[S]:
    """Take a struct from the query, and nothing from the body."""
    return Takes(lambda query, _, __: read_query(query, kind), query=kind)


def from_json(kind: type[S], read: Callable[[bytes], S] | None = None) -> Takes[S]:
    """Take a struct from a JSON body, which may be left out when the struct needs no field."""
    required = any(each.required for each in msgspec.structs.fields(kind))
    return Takes(
        lambda _, body, __: read_body(body, kind) if read is None else read(body), bodies={JSON: kind}, required=required
    )


def document(operations: Sequence[Operation], *, version: str, prefix: str) -> dict[str, Any]:
    """Describe the operations, which are served under `prefix`."""
    kinds = list(dict.fromkeys([Id, Line, Refusal, *chain.from_iterable(map(_kinds, operations))]))
    shapes, components = msgspec.json.schema_components(kinds, ref_template=_COMPONENTS)
    shape = dict(zip(kinds, map(_readable, shapes), strict=True))
    components = {name: _readable(components[name]) for name in sorted(components)}
    components["Error"]["properties"]["code"]["enum"] = list(CODES)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, shape, components)
    for query in {each.takes.query.__name__ for each in operations if each.takes.query}:
        components.pop(query, None)  # taken apart into parameters
    return {
        "openapi": "3.1.0",
        "info": {"title": "Rollcall", "version": version, "description": _ABOUT},
        "servers": [{"url": prefix}],
        "security": [{"bearer": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _kinds(operation: Operation) -> Iterator[Any]:
    """List every type that an operation mentions."""
    if operation.takes.query:
        yield operation.takes.query
    yield from (kind for kind in operation.takes.bodies.values() if kind is not None)
    yield from (answer.kind for answer in operation.answers.values() if answer.kind is not None)


def _described(operation: Operation, shape: Mapping[Any, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    parameters = [{"name": name, "in": "path", "required": True, "schema": shape[Id]} for name in operation.ids]
    parameters += [{"name": name, "in": "header", "schema": shape[Line]} for name in operation.headers]
    if operation.takes.query:
        parameters += _parameters(components[operation.takes.query.__name__])
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        **({"security": []} if operation.public else {}),
        **({"parameters": parameters} if parameters else {}),
        "responses": {
            **{str(status): _answer(answer, shape) for status, answer in sorted(operation.answers.items())},
            **_refusals(operation, shape),
        },
    }
    if bodies := operation.takes.bodies:
        content = {each: {"schema": _TEXT if kind is None else shape[kind]} for each, kind in bodies.items()}
        described["requestBody"] = {"required": operation.takes.required, "content": content}
    return described


def _parameters(query: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Take a query's struct apart; what may be null may be left out, and null cannot be said in an address."""
    parameters = []
    for name, schema in query["properties"].items():
        said = {**schema["anyOf"][0]} if "anyOf" in schema else {**schema}
        description = said.pop("description", None)
        parameters.append(
            {"name": name, "in": "query", "schema": said, **({"description": description} if description else {})}
        )
    return parameters


def _answer(answer: Answer, shape: Mapping[Any, Any]) -> dict[str, Any]:
    schema = _TEXT if answer.kind is None else shape[answer.kind]
    return {"description": answer.description, "content": {answer.content_type: {"schema": schema}}}


def _refusals(operation: Operation, shape: Mapping[Any, Any]) -> dict[str, Any]:
    """Describe what may be refused: by status, each with the codes that come with it."""
    codes = () if operation.public else _MET_EVERYWHERE
    by_status: dict[int, list[str]] = {}
    for code in (*codes, *operation.refusals):
        by_status.setdefault(CODES[code].status, []).append(f"`{code}`: {CODES[code].message}")
    if operation.takes.bodies:
        by_status[413] = ["`invalid`: The body is too large"]
    return {
        str(status): {"description": "; ".join(lines), "content": {JSON: {"schema": shape[Refusal]}}}
        for status, lines in sorted(by_status.items())
    }


def _readable(node: Any, name: str = "") -> Any:
    """Say in JSON Schema's words what msgspec says in Python's: where a pattern begins and ends, and what a time is."""
    if isinstance(node, list | tuple):
        return [_readable(each, name) for each in node]
    if not isinstance(node, dict):
        return node
    readable = {
        key: _readable(each, name if key == "anyOf" else key)
        for key, each in node.items()
        if not (key == "title" and isinstance(each, str))
    }
    if "pattern" in readable:
        readable["pattern"] = readable["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
    if isinstance(description := readable.get("description"), str):
        readable["description"] = description.replace("None", "null")
    if readable.get("type") == "string" and _TIMES.fullmatch(name):
        readable["format"] = "date-time"
    return readable
