"""How the environment becomes settings: what is given, what is not, and what is wrong."""

from datetime import timedelta

import pytest

from shared.errors import StartupFailed
from shared.settings import Settings


@pytest.mark.parametrize(
    ("given", "auto_end"),
    [
        (None, timedelta(minutes=15)),
        ("", timedelta(minutes=15)),
        ("0", timedelta(0)),
        ("45", timedelta(minutes=45)),
        ("1440", timedelta(days=1)),
        ("off", None),
    ],
)
def test_sessions_end_by_themselves_after_a_quarter_of_an_hour_unless_told_otherwise(
    given: str | None, auto_end: timedelta | None
) -> None:
    environ = {} if given is None else {"ROLLCALL_AUTO_END_MINUTES": given}

    assert Settings.from_env(environ).auto_end == auto_end


@pytest.mark.parametrize("given", ["1441", "-1", "+5", "1.5", "15 ", "OFF", "never", "٣", "9" * 5000])
def test_anything_else_is_refused_in_one_line_that_names_the_setting(given: str) -> None:
    with pytest.raises(StartupFailed) as failed:
        Settings.from_env({"ROLLCALL_AUTO_END_MINUTES": given})

    assert str(failed.value).startswith("ROLLCALL_AUTO_END_MINUTES must be off, or minutes from 0 to 1440")
    assert "\n" not in str(failed.value)


def test_a_proxy_is_trusted_only_when_it_is_named() -> None:
    assert Settings.from_env({}).trusted_proxies == ()
    given = {"ROLLCALL_TRUSTED_PROXIES": " 10.0.0.0/8,192.0.2.7 , fd00::/8,"}
    assert list(map(str, Settings.from_env(given).trusted_proxies)) == ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]


@pytest.mark.parametrize("given", ["nginx", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0-10.0.0.9", "*"])
def test_what_is_no_network_is_one_line_that_names_the_setting(given: str) -> None:
    with pytest.raises(StartupFailed) as failed:
        Settings.from_env({"ROLLCALL_TRUSTED_PROXIES": given})

    assert str(failed.value).startswith("ROLLCALL_TRUSTED_PROXIES must be networks like 10.0.0.0/8, separated by commas")
    assert "\n" not in str(failed.value)


def test_pages_of_other_origins_are_let_in_only_when_they_are_named() -> None:
    assert Settings.from_env({}).cors_origins == ()
    named = [
        "https://school.example",
        "http://localhost:5173",
        "capacitor://localhost",
        "http://[::1]:8080",
        "null",
        "file://",
        "*",
    ]
    assert Settings.from_env({"ROLLCALL_CORS_ORIGINS": f" {' , '.join(named)},"}).cors_origins == tuple(named)


@pytest.mark.parametrize(
    "given",
    [
        "school.example",
        "https://school.example/",
        "https://School.example",
        "https://school.example:443",
        "http://school.example:99999",
        "https://a.example https://b.example",
        "x",
    ],
)
def test_what_no_browser_says_it_is_from_is_one_line_that_names_the_setting(given: str) -> None:
    """Nobody would be let in by it, and nobody would know why."""
    with pytest.raises(StartupFailed) as failed:
        Settings.from_env({"ROLLCALL_CORS_ORIGINS": f"https://school.example,{given}"})

    assert str(failed.value).startswith("ROLLCALL_CORS_ORIGINS must be origins like https://a.example")
    assert "\n" not in str(failed.value)


def test_tokens_are_signed_with_a_secret_or_with_published_keys_and_never_with_either() -> None:
    secret, url = {"ROLLCALL_JWT_SECRET": "s" * 32}, {"ROLLCALL_JWT_JWKS_URL": "https://login.example/keys"}

    assert Settings.from_env(secret).jwt_secret == "s" * 32
    assert Settings.from_env(url).jwt_jwks_url == "https://login.example/keys"
    with pytest.raises(StartupFailed) as failed:
        Settings.from_env({**secret, **url})
    assert str(failed.value).startswith("ROLLCALL_JWT_SECRET and ROLLCALL_JWT_JWKS_URL are both set")
