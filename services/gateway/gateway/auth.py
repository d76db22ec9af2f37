"""Tokens: checked and minted here and nowhere else."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import jwt
from msgspec import Struct

from shared.errors import Refused
from shared.messages import Actor, Role

LEEWAY_SECONDS = 30
_ALGORITHM = "HS256"
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_NAME_CHARACTERS = 200


class User(Struct, frozen=True):
    """Who a token speaks for, and until when."""

    actor: Actor
    expires_at: datetime


class Tokens:
    """Checks tokens against one secret; `audience` and `issuer` are checked when they are not empty."""

    def __init__(self, secret: str, *, audience: str = "", issuer: str = "") -> None:
        self._secret = secret
        self._audience = audience
        self._issuer = issuer

    def check(self, token: object) -> User:
        """Tell whose token this is; raise Refused with `token_expired` or `unauthenticated`."""
        if not isinstance(token, str) or not token:
            raise Refused("unauthenticated")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                leeway=LEEWAY_SECONDS,
                audience=self._audience or None,
                issuer=self._issuer or None,
                # The contract says what is checked: not when a token was issued, by a clock that may be a minute ahead.
                options={
                    "require": ["exp"],
                    "verify_aud": bool(self._audience),
                    "verify_sub": False,
                    "verify_iat": False,
                },
            )
            return _user(claims)
        except jwt.ExpiredSignatureError:
            raise Refused("token_expired") from None
        # The others: a token that is not Unicode, and an `exp` that is no time or beyond the calendar.
        except (jwt.InvalidTokenError, ValueError, OverflowError, OSError, TypeError) as error:
            raise Refused("unauthenticated", f"The token is not valid: {error}") from None


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
    return jwt.encode(claims, secret, algorithm=_ALGORITHM)


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
