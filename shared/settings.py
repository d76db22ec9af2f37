"""The environment, turned into one frozen object. Nothing else reads it; a wrong value names its setting in one line."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from shared.errors import StartupFailed

_URL_SCHEMES = {
    "ROLLCALL_AMQP_URL": ("amqp", "amqps"),
    "ROLLCALL_REDIS_URL": ("redis", "rediss"),
    "ROLLCALL_DATABASE_URL": ("postgresql",),
    "ROLLCALL_JWT_JWKS_URL": ("http", "https"),
}
_LOG_LEVELS = ("debug", "info", "warning", "error")
JWT_SECRET_BYTES = 32
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of every process; docs/contract.md lists them. Empty strings stand for what was not given."""

    amqp_url: str
    redis_url: str
    database_url: str
    redis_prefix: str
    jwt_secret: str
    jwt_audience: str
    jwt_issuer: str
    cors_origins: tuple[str, ...]
    host: str
    port: int
    health_port: int
    log_level: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, needs: Iterable[str] = (), health_port: int = 0) -> Self:
        """Read the settings; raise StartupFailed for the first that is missing (of those in `needs`) or wrong.

        `health_port` is the process's default for ROLLCALL_HEALTH_PORT.
        """
        for name in needs:
            if not environ.get(name):
                raise StartupFailed(f"{name} is not set")
        if environ.get("ROLLCALL_JWT_JWKS_URL"):
            raise StartupFailed("ROLLCALL_JWT_JWKS_URL is not supported yet; set ROLLCALL_JWT_SECRET")
        secret = environ.get("ROLLCALL_JWT_SECRET", "")
        if secret and len(secret.encode()) < JWT_SECRET_BYTES:
            raise StartupFailed(f"ROLLCALL_JWT_SECRET must have at least {JWT_SECRET_BYTES} bytes")
        level = (environ.get("ROLLCALL_LOG_LEVEL") or "info").lower()
        if level not in _LOG_LEVELS:
            raise StartupFailed(f"ROLLCALL_LOG_LEVEL must be one of {', '.join(_LOG_LEVELS)}")
        prefix = environ.get("ROLLCALL_REDIS_PREFIX") or "rollcall"
        if not _PREFIX.fullmatch(prefix):
            raise StartupFailed("ROLLCALL_REDIS_PREFIX must be 1 to 64 characters of A-Z, a-z, 0-9, _, -, . and :")
        origins = environ.get("ROLLCALL_CORS_ORIGINS", "")
        return cls(
            amqp_url=_url(environ, "ROLLCALL_AMQP_URL"),
            redis_url=_url(environ, "ROLLCALL_REDIS_URL"),
            database_url=_url(environ, "ROLLCALL_DATABASE_URL"),
            redis_prefix=prefix,
            jwt_secret=secret,
            jwt_audience=environ.get("ROLLCALL_JWT_AUDIENCE", ""),
            jwt_issuer=environ.get("ROLLCALL_JWT_ISSUER", ""),
            cors_origins=tuple(origin.strip() for origin in origins.split(",") if origin.strip()),
            host=environ.get("ROLLCALL_HOST") or "0.0.0.0",
            port=_port(environ, "ROLLCALL_PORT", 8080),
            health_port=_port(environ, "ROLLCALL_HEALTH_PORT", health_port),
            log_level=level,
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


def _port(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise StartupFailed(f"{name} must be a port number, not {text!r}")
    return int(text)
