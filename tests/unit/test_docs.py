"""README.md and ARCHITECTURE.md name only what there is: files, routes, events, settings."""

import re
from pathlib import Path

import pytest

from gateway.http import PREFIX, description

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "ARCHITECTURE.md")
PACKAGES = ("gateway/gateway", "session-service/session_service", "attendance-service/attendance_service")
"""Below services/; ARCHITECTURE.md leaves out what is before the last part, or all of it."""


def text(page: str) -> str:
    return (ROOT / page).read_text()


def sources(*folders: str) -> str:
    """All the code of some folders."""
    files = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return "\n".join(file.read_text() for file in files)


def spans(page: str) -> list[str]:
    """What stands between single backticks, line breaks taken out."""
    prose = re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose)]


def found(path: str) -> bool:
    """Say whether a path exists: as it stands, in a service or its package, or by its end among the tests."""
    packages = [ROOT / "services" / package for package in PACKAGES]
    places = [ROOT, *packages, *(package.parent for package in packages)]
    return any((place / path).exists() for place in places) or any((ROOT / "tests").rglob(path))


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    named = [span.partition(":")[0] for span in spans(page)]
    paths = [
        name for name in named if re.fullmatch(r"[\w.-]*(/[\w.-]*)*", name) and re.search(r"/$|\w\.(py|md|csv|toml|yml)$", name)
    ]
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text(page)) if "://" not in link]
    missing = [path for path in (*paths, *filter(None, links)) if not path.startswith((".rollcall", "/")) and not found(path)]
    assert missing == []
    assert len(paths) + len(links) > 3


def test_every_place_in_the_code_that_is_named_is_there() -> None:
    """`gateway/rooms.py: Rooms.admit` is a method of that class in that file."""
    places = [match for span in spans("ARCHITECTURE.md") if (match := re.fullmatch(r"([\w/]+\.py): ([\w.]+)", span))]
    for place in places:
        name_of_file = Path(place[1]).name
        files = [file for folder in ("services", "shared") for file in (ROOT / folder).rglob(name_of_file)]
        codes = [file.read_text() for file in files if str(file).endswith(f"/{place[1]}")]
        assert any(
            all(re.search(rf"(def|class) {name}\b|^{name}\b", code, re.MULTILINE) for name in place[2].split("."))
            for code in codes
        ), place[0]
    assert len(places) > 10


@pytest.mark.parametrize("page", PAGES)
def test_every_route_that_is_named_is_served(page: str) -> None:
    served = [re.sub(r"\{\w+\}", "[^/]+", PREFIX + path) for path in description()["paths"]]
    named = re.findall(r"/api/v1(?:/[\w.${}-]+)+", text(page))
    assert [path for path in named if not any(re.fullmatch(route, path) for route in served)] == []
    if page == "README.md":
        assert named


@pytest.mark.parametrize("page", PAGES)
def test_every_event_that_is_named_is_one(page: str) -> None:
    """A word like `studentLeft` is either an event that the gateway takes or tells, or a key of what it tells."""
    code = sources("services/gateway")
    words = {word for word in re.findall(r"[`\"]([a-z]+(?:[A-Z][a-z]+)+)[`\"]", text(page))}
    assert [word for word in words if f'"{word}"' not in code] == []
    assert words


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_is_named_is_read(page: str) -> None:
    code = sources("services", "shared", "tests")
    named = set(re.findall(r"ROLLCALL_[A-Z_]+[A-Z]", text(page)))
    assert [name for name in named if f'"{name}"' not in code] == []
    assert named
