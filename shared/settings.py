"""The environment, turned into one frozen object. Nothing else reads it; a wrong value names its setting in one line."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Self
from urllib.parse import SplitResult, urlsplit

from shared.errors import StartupFailed

_URL_SCHEMES = {
    "ROLLCALL_AMQP_URL": ("amqp", "amqps"),
    "ROLLCALL_REDIS_URL": ("redis", "rediss"),
    "ROLLCALL_DATABASE_URL": ("postgresql",),
    "ROLLCALL_JWT_JWKS_URL": ("http", "https"),
}
_LOG_LEVELS = ("debug", "info", "warning", "error")
JWT_SECRET_BYTES = 32
_AUTO_END_MINUTES = "15"
_AUTO_END_MOST_MINUTES = 24 * 60
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
# As browsers write one: no path, no capitals. Apps have schemes of their own.
_ORIGIN = re.compile(r"\*|null|file://|[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
_UNSAID_PORTS = {("http", 80), ("https", 443)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of every process; docs/contract.md lists them. Empty strings stand for what was not given."""

    amqp_url: str
    redis_url: str
    database_url: str
    redis_prefix: str
    jwt_secret: str
    jwt_jwks_url: str
    jwt_audience: str
    jwt_issuer: str
    cors_origins: tuple[str, ...]
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    """Whose word for a client's address (X-Forwarded-For) counts."""
    host: str
    port: int
    health_port: int
    log_level: str
    auto_end: timedelta | None
    """How long after its planned end a session that nobody ends is ended; None: never."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, needs: Iterable[str] = (), health_port: int = 0) -> Self:
        """Read the settings; raise StartupFailed for the first that is missing (of those in `needs`) or wrong.

        `health_port` is the process's default for ROLLCALL_HEALTH_PORT.
        """
        for name in needs:
            if not environ.get(name):
                raise StartupFailed(f"{name} is not set")
        secret, jwks_url = environ.get("ROLLCALL_JWT_SECRET", ""), _url(environ, "ROLLCALL_JWT_JWKS_URL")
        if secret and jwks_url:
            raise StartupFailed(
                "ROLLCALL_JWT_SECRET and ROLLCALL_JWT_JWKS_URL are both set; tokens are signed with one of them"
            )
        if secret and len(secret.encode()) < JWT_SECRET_BYTES:
            raise StartupFailed(f"ROLLCALL_JWT_SECRET must have at least {JWT_SECRET_BYTES} bytes")
        level = (environ.get("ROLLCALL_LOG_LEVEL") or "info").lower()
        if level not in _LOG_LEVELS:
            raise StartupFailed(f"ROLLCALL_LOG_LEVEL must be one of {', '.join(_LOG_LEVELS)}")
        prefix = environ.get("ROLLCALL_REDIS_PREFIX") or "rollcall"
        if not _PREFIX.fullmatch(prefix):
            raise StartupFailed("ROLLCALL_REDIS_PREFIX must be 1 to 64 characters of A-Z, a-z, 0-9, _, -, . and :")
        return cls(
            amqp_url=_url(environ, "ROLLCALL_AMQP_URL"),
            redis_url=_url(environ, "ROLLCALL_REDIS_URL"),
            database_url=_url(environ, "ROLLCALL_DATABASE_URL"),
            redis_prefix=prefix,
            jwt_secret=secret,
            jwt_jwks_url=jwks_url,
            jwt_audience=environ.get("ROLLCALL_JWT_AUDIENCE", ""),
            jwt_issuer=environ.get("ROLLCALL_JWT_ISSUER", ""),
            cors_origins=_origins(environ, "ROLLCALL_CORS_ORIGINS"),
            trusted_proxies=_networks(environ, "ROLLCALL_TRUSTED_PROXIES"),
            host=environ.get("ROLLCALL_HOST") or "0.0.0.0",
            port=_port(environ, "ROLLCALL_PORT", 8080),
            health_port=_port(environ, "ROLLCALL_HEALTH_PORT", health_port),
            log_level=level,
            auto_end=_auto_end(environ),
        )


def _url(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "")
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in _URL_SCHEMES[name] and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise StartupFailed(f"{name} must be a URL like {_URL_SCHEMES[name][0]}://host:port/…")
    return text


def _origins(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    origins = _listed(environ, name)
    for origin in origins:
        if not _ORIGIN.fullmatch(origin) or not _as_browsers_say(urlsplit(origin)):
            raise StartupFailed(f"{name} must be origins like https://a.example, separated by commas, or *; not {origin!r}")
    return origins


def _as_browsers_say(origin: SplitResult) -> bool:
    """Say whether its port is one, and not the scheme's own, which browsers leave out."""
    try:
        return (origin.scheme, origin.port) not in _UNSAID_PORTS
    except ValueError:
        return False


def _networks(environ: Mapping[str, str], name: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(map(ip_network, _listed(environ, name)))
    except ValueError as error:
        raise StartupFailed(f"{name} must be networks like 10.0.0.0/8, separated by commas: {error}") from None


def _listed(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(text.strip() for text in environ.get(name, "").split(",") if text.strip())


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise StartupFailed(f"{name} must be a port number, not {text!r}")
    return int(text)


def _auto_end(environ: Mapping[str, str]) -> timedelta | None:
    text = environ.get("ROLLCALL_AUTO_END_MINUTES") or _AUTO_END_MINUTES
    if text == "off":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 4 or int(text) > _AUTO_END_MOST_MINUTES:
        raise StartupFailed(
            f"ROLLCALL_AUTO_END_MINUTES must be off, or minutes from 0 to {_AUTO_END_MOST_MINUTES}, not {text!r}"
        )
    return timedelta(minutes=int(text))
