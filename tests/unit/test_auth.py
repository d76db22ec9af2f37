"""Tokens: whose is accepted, whose is not, and with which code."""

import asyncio
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from gateway.auth import LEEWAY_SECONDS, MAX_TOKEN_CHARACTERS, Tokens, User, mint
from gateway.keys import Secret
from shared.errors import Refused
from shared.messages import Actor, Role

SECRET = "a secret of at least thirty-two bytes"
OTHER = "another secret of thirty-two bytes or so"
MARGIN = timedelta(seconds=10)
"""How far from a limit of time a test keeps, so that a slow machine does not cross it."""


def now() -> datetime:
    return datetime.now(UTC)


def claims(**changes: Any) -> dict[str, Any]:
    """Ann's; a claim that is None is left out."""
    good = {"sub": "ann", "name": "Ann", "role": "student", "iat": now(), "exp": now() + timedelta(hours=1)}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def a_token(**changes: Any) -> str:
    return jwt.encode(claims(**changes), SECRET, algorithm="HS256")


def check(token: object, tokens: Tokens | None = None) -> User:
    return asyncio.run((tokens or Tokens(Secret(SECRET))).check(token))


def code(token: object, tokens: Tokens | None = None) -> str:
    with pytest.raises(Refused) as refused:
        check(token, tokens)
    return refused.value.code


def test_a_good_token_says_who_and_until_when() -> None:
    until = now().replace(microsecond=0) + timedelta(hours=1)

    user = check(a_token(exp=until))

    assert (user.actor, user.expires_at) == (Actor("ann", "Ann", "student"), until)


@pytest.mark.parametrize("token", [None, "", " ", 7, b"x", {}, [], "x", "a.b.c", "ä.ö.ü", "\udcff", "." * 5000])
def test_what_is_no_token_is_unauthenticated(token: object) -> None:
    assert code(token) == "unauthenticated"


def test_a_token_signed_with_another_secret_is_unauthenticated() -> None:
    assert code(jwt.encode(claims(), OTHER, algorithm="HS256")) == "unauthenticated"


def test_a_token_changed_after_it_was_signed_is_unauthenticated() -> None:
    head, _, signature = a_token().split(".")
    _, body, _ = a_token(role="admin").split(".")

    assert code(f"{head}.{body}.{signature}") == "unauthenticated"


def test_an_unsigned_token_is_unauthenticated() -> None:
    unsigned = jwt.encode(claims(), "", algorithm="none")
    head, body, _ = unsigned.split(".")

    assert code(unsigned) == "unauthenticated"
    assert code(f"{head}.{body}.{a_token().rpartition('.')[2]}") == "unauthenticated"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_only_the_pinned_algorithm_is_accepted(algorithm: str) -> None:
    secret = SECRET * 3

    assert code(jwt.encode(claims(), secret, algorithm=algorithm), Tokens(Secret(secret))) == "unauthenticated"


def test_a_token_of_another_kind_of_key_is_unauthenticated() -> None:
    key = generate_private_key(public_exponent=65537, key_size=2048)

    assert code(jwt.encode(claims(), key, algorithm="RS256")) == "unauthenticated"


@pytest.mark.parametrize("crit", [["b64"], ["exp"], [], "exp", None, {}])
def test_a_token_that_asks_to_be_understood_is_not(crit: object) -> None:
    headers = {"crit": crit, "b64": True}

    assert code(signed(headers)) == "unauthenticated"


def test_a_token_may_say_where_its_key_is_and_nobody_looks() -> None:
    headers = {"kid": "k", "jku": "http://192.0.2.1/", "x5u": "http://192.0.2.1/", "jwk": {"kty": "oct", "k": "eHh4"}}

    assert check(signed(headers)).actor.id == "ann"
    assert code(jwt.encode(claims(), OTHER, algorithm="HS256", headers=headers)) == "unauthenticated"


@pytest.mark.parametrize("headers", [{"kid": 7}, {"kid": ["a"]}, {"alg": 7}, {"alg": None}])
def test_a_header_that_is_none_is_unauthenticated(headers: dict[str, object]) -> None:
    assert code(signed(headers)) == "unauthenticated"


def test_a_header_nested_without_end_is_unauthenticated() -> None:
    for header in (b"[" * 6000, b'{"alg":"HS256","x":' + b"[" * 6000):
        token = urlsafe_b64encode(header).decode().rstrip("=") + ".e30.x"
        assert len(token) <= MAX_TOKEN_CHARACTERS
        assert code(token) == "unauthenticated"


def test_a_token_that_is_too_long_is_not_even_read() -> None:
    fits = a_token(padding="x" * 5000)
    assert len(fits) < MAX_TOKEN_CHARACTERS
    assert check(fits).actor.id == "ann"

    class Unread:
        async def find(self, algorithm: str, kid: str | None) -> str:
            raise AssertionError("looked for a key")

    assert code(a_token(padding="x" * 6200), Tokens(Unread())) == "unauthenticated"


def signed(headers: Mapping[str, object]) -> str:
    """Ann's token with these headers, whatever they are, rightly signed."""
    encoded = [
        urlsafe_b64encode(json.dumps(part, default=lambda at: at.timestamp()).encode()).rstrip(b"=")
        for part in ({"typ": "JWT", "alg": "HS256", **headers}, claims())
    ]
    signature = hmac.digest(SECRET.encode(), b".".join(encoded), "sha256")
    return b".".join([*encoded, urlsafe_b64encode(signature).rstrip(b"=")]).decode()


# Time


def test_a_token_lives_on_for_the_leeway_and_no_longer() -> None:
    leeway = timedelta(seconds=LEEWAY_SECONDS)

    assert check(a_token(exp=now() - leeway + MARGIN)).actor.id == "ann"
    assert code(a_token(exp=now() - leeway - MARGIN)) == "token_expired"


def test_a_token_is_good_the_leeway_before_its_time_and_no_earlier() -> None:
    leeway = timedelta(seconds=LEEWAY_SECONDS)

    assert check(a_token(nbf=now() + leeway - MARGIN)).actor.id == "ann"
    assert code(a_token(nbf=now() + leeway + MARGIN)) == "unauthenticated"


@pytest.mark.parametrize("issued_at", [datetime(2100, 1, 1, tzinfo=UTC), "yesterday"])
def test_when_it_was_issued_is_nobodys_business(issued_at: object) -> None:
    """The contract names what is checked; a school's clock that is a minute ahead keeps nobody out."""
    assert check(a_token(iat=issued_at)).actor.id == "ann"


@pytest.mark.parametrize("jti", [7, ["a"], {}, ""])
def test_what_a_token_is_called_is_nobodys_business(jti: object) -> None:
    assert check(a_token(jti=jti)).actor.id == "ann"


def test_a_token_must_end() -> None:
    assert code(a_token(exp=None)) == "unauthenticated"


@pytest.mark.parametrize("exp", ["soon", "4102444800", 10**18, 10**400, 1e300, float("inf"), float("nan"), [], {}])
def test_an_end_that_is_no_time_is_unauthenticated(exp: object) -> None:
    assert code(a_token(exp=exp)) == "unauthenticated"


def test_who_comes_while_the_token_is_good_may_stay_until_it_expires() -> None:
    user = User(Actor("ann", "Ann", "student"), now())

    assert user.welcome_until(user.expires_at - timedelta(milliseconds=1)) == user.expires_at


@pytest.mark.parametrize("late", [0, 1, LEEWAY_SECONDS])
def test_who_comes_within_the_leeway_has_all_of_it(late: int) -> None:
    user = User(Actor("ann", "Ann", "student"), now())

    until = user.welcome_until(user.expires_at + timedelta(seconds=late))

    assert until == user.expires_at + timedelta(seconds=LEEWAY_SECONDS)


# Who


def test_uid_says_who_where_sub_does_not() -> None:
    assert check(a_token(sub=None, uid="ben")).actor.id == "ben"
    assert check(a_token(sub="ann", uid="ben")).actor.id == "ann"


@pytest.mark.parametrize("subject", [None, "", "a b", "ann\n", "a" * 65, 7, ["ann"], "änn", "a/b"])
def test_a_token_must_name_a_user_by_an_id(subject: object) -> None:
    assert code(a_token(sub=subject)) == "unauthenticated"
    assert code(a_token(sub=None, uid=subject)) == "unauthenticated"


def test_the_longest_id_is_an_id() -> None:
    assert check(a_token(sub="aZ0_.:-" + "a" * 57)).actor.id == "aZ0_.:-" + "a" * 57


@pytest.mark.parametrize("role", get_args(Role))
def test_every_role_of_the_contract_is_accepted(role: Role) -> None:
    assert check(a_token(role=role)).actor.role == role


@pytest.mark.parametrize("role", [None, "", "Student", "root", 1, ["student"], {"student": True}])
def test_a_token_must_name_a_role_of_the_contract(role: object) -> None:
    assert code(a_token(role=role)) == "unauthenticated"


@pytest.mark.parametrize("name", [None, "", 7, ["Ann"], "\0"])
def test_who_has_no_name_is_called_by_their_id(name: object) -> None:
    assert check(a_token(name=name)).actor.name == "ann"


def test_a_name_can_be_sent_on() -> None:
    """Half a surrogate pair, which JSON can carry and UTF-8 cannot."""
    assert check(a_token(name="Ann \ud83d")).actor.name == "Ann ?"


def test_a_name_is_one_that_postgres_can_keep() -> None:
    name = check(a_token(name="Änn\0 " + "x" * 5000)).actor.name

    assert name.startswith("Änn x")
    assert len(name) <= 200


# For whom and by whom


def test_a_token_for_an_audience_is_accepted_where_none_is_configured() -> None:
    assert check(a_token(aud="somewhere", iss="somebody")).actor.id == "ann"
    assert check(a_token(aud=["a", "b"])).actor.id == "ann"


def test_the_audience_is_checked_where_it_is_configured() -> None:
    tokens = Tokens(Secret(SECRET), audience="rollcall")

    assert check(a_token(aud="rollcall"), tokens).actor.id == "ann"
    assert check(a_token(aud=["other", "rollcall"]), tokens).actor.id == "ann"
    assert code(a_token(aud="other"), tokens) == code(a_token(), tokens) == "unauthenticated"


def test_the_issuer_is_checked_where_it_is_configured() -> None:
    tokens = Tokens(Secret(SECRET), issuer="school")

    assert check(a_token(iss="school"), tokens).actor.id == "ann"
    assert code(a_token(iss="other"), tokens) == code(a_token(), tokens) == "unauthenticated"


# Minting


@pytest.mark.parametrize("role", get_args(Role))
def test_a_minted_token_is_a_good_token(role: Role) -> None:
    at = now().replace(microsecond=0)

    token = mint(SECRET, subject="t1", role=role, name="Ada", lifetime=timedelta(minutes=5), now=at)

    user = check(token)
    assert (user.actor, user.expires_at) == (Actor("t1", "Ada", role), at + timedelta(minutes=5))


def test_a_minted_token_ends() -> None:
    token = mint(SECRET, subject="t1", role="teacher", name="Ada", lifetime=timedelta(hours=1), now=now() - timedelta(hours=2))

    assert code(token) == "token_expired"
