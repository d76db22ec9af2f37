"""Tokens: checked and minted here and nowhere else."""

import re
from base64 import urlsafe_b64decode
from datetime import UTC, datetime, timedelta
from typing import Any, Final, get_args

import jwt
import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.keys import SECRET_ALGORITHM, Keys
from shared.errors import Refused
from shared.messages import Actor, Role

LEEWAY_SECONDS: Final = 30
MAX_TOKEN_CHARACTERS: Final = 8192
"""As long as a header of HTTP may be; what is longer is not even read."""
_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_NAME_CHARACTERS: Final = 200


class User(Struct, frozen=True):
    """Who a token speaks for, and until when."""

    actor: Actor
    expires_at: datetime

    def welcome_until(self, now: datetime) -> datetime:
        """Tell until when a connection that shows this token now may last: who came within the leeway has all of it."""
        return self.expires_at if now < self.expires_at else self.expires_at + timedelta(seconds=LEEWAY_SECONDS)


class _Header(Struct):
    """What is looked at of a token's header. Where else a key might be found (`jku`, `x5u`, `jwk`, `x5c`) is not."""

    alg: str
    kid: str | None = None
    crit: Raw | UnsetType = UNSET


class Tokens:
    """Checks tokens against some keys; `audience` and `issuer` are checked when they are not empty."""

    def __init__(self, keys: Keys, *, audience: str = "", issuer: str = "") -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer

    async def check(self, token: object) -> User:
        """Tell whose token this is; raise Refused with `token_expired`, `unauthenticated`, or `unavailable` without its key.

        Waits only for a key that is not known yet.
        """
        if not isinstance(token, str) or not token or len(token) > MAX_TOKEN_CHARACTERS:
            raise Refused("unauthenticated")
        header = _header(token)
        key = await self._keys.find(header.alg, header.kid)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[header.alg],
                leeway=LEEWAY_SECONDS,
                audience=self._audience or None,
                issuer=self._issuer or None,
                # The contract says what is checked: not when a token was issued, by a clock that may be a minute ahead,
                # and not what else names it.
                options={
                    "require": ["exp"],
                    "verify_aud": bool(self._audience),
                    "verify_sub": False,
                    "verify_iat": False,
                    "verify_jti": False,
                },
            )
            return _user(claims)
        except jwt.ExpiredSignatureError:
            raise Refused("token_expired") from None
        except jwt.InvalidTokenError as error:
            raise Refused("unauthenticated", f"The token is not valid: {error}") from None
        # A token that is not Unicode, and an `exp` that is no time or beyond the calendar.
        except (ValueError, OverflowError, OSError, TypeError, RecursionError):
            raise Refused("unauthenticated", "The token is not valid") from None


def mint(
    secret: str,
    *,
    subject: str,
    role: Role,
    name: str,
    lifetime: timedelta,
    now: datetime,
    audience: str = "",
    issuer: str = "",
) -> str:
    """Make a token, for trying out and for tests; `audience` and `issuer` are left out when empty."""
    claims = {"sub": subject, "role": role, "name": name, "iat": now, "exp": now + lifetime}
    claims |= {name: value for name, value in (("aud", audience), ("iss", issuer)) if value}
    return jwt.encode(claims, secret, algorithm=SECRET_ALGORITHM)


def _header(token: str) -> _Header:
    """Read a token's header, which nobody has signed yet; what it asks us to understand, we do not."""
    encoded = token.partition(".")[0]
    try:
        header = msgspec.json.decode(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=_Header)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Refused("unauthenticated", "The token is not valid") from None
    if header.crit is not UNSET:
        raise Refused("unauthenticated", "The token's header names critical extensions, and none is known")
    return header


def _user(claims: dict[str, Any]) -> User:
    subject = claims.get("sub", claims.get("uid"))
    if not isinstance(subject, str) or not _ID.fullmatch(subject):
        raise Refused("unauthenticated", "The token names no user: sub (or uid) is missing or not an id")
    role: Role | None = claims.get("role")
    if role is None or role not in get_args(Role):
        raise Refused("unauthenticated", "The token names no role")
    name = claims.get("name")
    # Neither a NUL nor half a surrogate pair can be stored or sent.
    name = name.replace("\0", "").encode(errors="replace").decode()[:_NAME_CHARACTERS] if isinstance(name, str) else ""
    return User(Actor(subject, name or subject, role), datetime.fromtimestamp(claims["exp"], UTC))
