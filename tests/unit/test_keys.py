"""Published keys: which are taken, for which algorithm, and what becomes of tokens when the set changes or cannot be had."""

import asyncio
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway import keys as keys_module
from gateway.auth import Tokens
from gateway.keys import MAX_SET_BYTES, PublishedKeys, open_keys, open_published_keys, read_keys
from shared.errors import Refused, StartupFailed
from tests.unit.published_keys import ALGORITHMS, Provider, jwk, key_set, private_key, publishing, token


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with publishing(Provider(key_set(jwk("RS256"), jwk("ES256", "k2"), jwk("EdDSA", "k3")))) as provider:
        yield provider


@asynccontextmanager
async def checking(provider: Provider) -> AsyncIterator[tuple[Tokens, PublishedKeys]]:
    async with open_published_keys(provider.url) as keys:
        yield Tokens(keys), keys


async def code(tokens: Tokens, shown: str) -> str:
    with pytest.raises(Refused) as refused:
        await tokens.check(shown)
    return refused.value.code


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown key may cause a fetch at any time."""
    monkeypatch.setattr(keys_module, "AGAIN_SECONDS", 0.0)


@pytest.mark.parametrize(("algorithm", "kid"), list(zip(ALGORITHMS, ("k1", "k2", "k3"), strict=True)))
async def test_each_kind_of_key_opens_with_its_algorithm(provider: Provider, algorithm: str, kid: str) -> None:
    async with checking(provider) as (tokens, _):
        assert (await tokens.check(token(algorithm, kid))).actor.id == "ann"
        assert provider.asked == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_must_name_its_key_and_be_signed_with_it(provider: Provider, algorithm: str) -> None:
    kids = dict(zip(ALGORITHMS, ("k1", "k2", "k3"), strict=True))
    async with checking(provider) as (tokens, _):
        assert await code(tokens, token(algorithm, None)) == "unauthenticated"
        assert await code(tokens, token(algorithm, kids[algorithm], number=2)) == "unauthenticated"
        for other in set(ALGORITHMS) - {algorithm}:
            assert await code(tokens, token(algorithm, kids[other])) == "unauthenticated"
        assert provider.asked == 1


async def test_a_public_key_is_no_secret(provider: Provider) -> None:
    """HS256 signed with what everybody can read, in each form in which it might be taken for the secret."""
    public = private_key("RS256", 1).public_key()
    forms = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(jwk("RS256")).encode(),
        jwk("RS256")["n"].encode(),
        b"",
    ]
    head, body, _ = token("HS256", key=b"x" * 32).split(".")
    async with checking(provider) as (tokens, _):
        for form in forms:
            signature = urlsafe_b64encode(hmac.digest(form, f"{head}.{body}".encode(), "sha256")).decode().rstrip("=")
            assert await code(tokens, f"{head}.{body}.{signature}") == "unauthenticated"
        assert provider.asked == 1


async def test_an_unsigned_token_or_one_for_another_algorithm_is_refused(provider: Provider) -> None:
    claims = {"sub": "ann", "role": "admin", "exp": datetime.now(UTC) + timedelta(hours=1)}
    async with checking(provider) as (tokens, _):
        assert await code(tokens, jwt.encode(claims, "", algorithm="none", headers={"kid": "k1"})) == "unauthenticated"
        for algorithm in ("RS384", "RS512", "PS256"):
            shown = jwt.encode(claims, private_key("RS256", 1), algorithm=algorithm, headers={"kid": "k1"})
            assert await code(tokens, shown) == "unauthenticated"
        assert provider.asked == 1


async def test_where_a_token_says_its_key_is_nobody_looks(provider: Provider) -> None:
    mine = Provider(key_set(jwk("RS256", "mine", number=2)))
    async with publishing(mine) as elsewhere, checking(provider) as (tokens, _):
        there = elsewhere.url
        headers: dict[str, Any] = {"jku": there, "x5u": there, "jwk": jwk("RS256", "mine", number=2), "x5c": ["MII"]}
        assert await code(tokens, token("RS256", "mine", 2, **headers)) == "unauthenticated"
        assert await code(tokens, token("RS256", "k1", 2, **headers)) == "unauthenticated"
        assert (await tokens.check(token("RS256", "k1", **headers))).actor.id == "ann"
    assert elsewhere.asked == 0


# The set changes


@pytest.mark.usefixtures("at_once")
async def test_a_new_key_is_found_when_a_token_names_it_and_an_old_one_opens_no_more(provider: Provider) -> None:
    async with checking(provider) as (tokens, _):
        provider.body = key_set(jwk("RS256", "new", number=2))
        assert (await tokens.check(token("RS256", "new", 2))).actor.id == "ann"
        assert provider.asked == 2
        assert await code(tokens, token("RS256")) == "unauthenticated"


async def test_a_key_that_is_withdrawn_opens_until_the_set_is_looked_at_again(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "REFRESH_SECONDS", 0.01)
    async with open_keys("", provider.url) as keys:
        tokens = Tokens(keys)
        await tokens.check(token("RS256"))
        provider.body = key_set(jwk("RS256", "new", number=2))
        async with asyncio.timeout(10):
            while await accepted(tokens, token("RS256")):  # noqa: ASYNC110 (the set is looked at in silence)
                await asyncio.sleep(0.01)
        assert await accepted(tokens, token("RS256", "new", 2))


async def accepted(tokens: Tokens, shown: str) -> bool:
    try:
        await tokens.check(shown)
    except Refused as refused:
        assert refused.code == "unauthenticated"
        return False
    return True


@pytest.mark.usefixtures("at_once")
async def test_many_who_name_an_unknown_key_share_one_fetch_and_nobody_else_waits(provider: Provider) -> None:
    async with checking(provider) as (tokens, _):
        provider.body = key_set(jwk("RS256"), jwk("RS256", "new", number=2))
        provider.open.clear()
        asking = [asyncio.create_task(tokens.check(token("RS256", "new", 2))) for _ in range(50)]
        gone = asyncio.create_task(tokens.check(token("RS256", "new", 2)))
        async with asyncio.timeout(10):
            await provider.asked_again.wait()
            await tokens.check(token("RS256"))
            gone.cancel()
            await asyncio.wait({gone})
            provider.open.set()
            users = await asyncio.gather(*asking)
        assert {user.actor.id for user in users} == {"ann"}
        assert (provider.asked, gone.cancelled()) == (2, True)


async def test_tokens_that_name_any_key_cost_one_fetch_in_a_while(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    async with checking(provider) as (tokens, keys):
        for number in range(20):
            assert await code(tokens, token("ES256", f"unknown-{number}")) == "unauthenticated"
        assert provider.asked == 1
        monkeypatch.setattr(keys, "_fetched_at", keys._fetched_at - keys_module.AGAIN_SECONDS)
        for number in range(20):
            assert await code(tokens, token("ES256", f"unknown-{number}")) == "unauthenticated"
        assert provider.asked == 2


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fault", [{"status": 503}, {"body": b"<html>"}, {"body": b"{}"}])
async def test_without_a_new_set_the_old_one_stays(provider: Provider, fault: dict[str, Any]) -> None:
    """And of an unknown key nobody can tell: `unavailable`, which may be tried again."""
    async with checking(provider) as (tokens, _):
        for name, value in fault.items():
            setattr(provider, name, value)
        assert await code(tokens, token("RS256", "new", 2)) == "unavailable"
        assert (await tokens.check(token("RS256"))).actor.id == "ann"
        assert provider.asked == 2


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("left", [key_set(), key_set({"kty": "oct", "k": "c2VjcmV0", "kid": "k1"})])
async def test_a_set_in_which_no_key_is_left_opens_to_nobody(provider: Provider, left: bytes) -> None:
    """Whoever withdraws their only key means it."""
    async with checking(provider) as (tokens, _):
        assert (await tokens.check(token("RS256"))).actor.id == "ann"
        provider.body = left
        assert await code(tokens, token("RS256", "unknown")) == "unauthenticated"
        assert await code(tokens, token("RS256")) == "unauthenticated"


# What is published


@pytest.mark.parametrize(
    "key",
    [
        jwk("RS256", None),
        jwk("RS256", 7),  # type: ignore[arg-type]
        jwk("RS256", alg="RS512"),
        jwk("RS256", alg="RSA-OAEP"),
        jwk("RS256", use="enc"),
        jwk("RS256", key_ops=["encrypt"]),
        jwk("RS256", kty="EC"),
        jwk("RS256", n="AQAB"),
        jwk("RS256", n="!"),
        jwk("RS256", n=7),
        jwk("ES256", crv="P-384"),
        jwk("ES256", x="AA"),
        jwk("EdDSA", crv="X25519"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "k1", "alg": "HS256"},
        {"kty": "RSA", "kid": "k1"},
        {},
        None,
        7,
    ],
)
def test_a_key_that_is_for_something_else_is_left_out_and_spoils_no_other(key: object) -> None:
    assert read_keys(key_set(key)) == {}
    assert list(read_keys(key_set(key, jwk("EdDSA", "good")))) == [("good", "EdDSA")]


@pytest.mark.parametrize("more", [{"alg": "RS256", "use": "sig", "key_ops": ["verify"]}, {"x5c": ["MII"], "d": "AQAB", "p": 1}])
def test_what_else_a_key_says_is_left_alone(more: dict[str, Any]) -> None:
    assert list(read_keys(key_set(jwk("RS256", **more)))) == [("k1", "RS256")]


def test_one_id_may_name_a_key_of_each_kind() -> None:
    assert set(read_keys(key_set(*map(jwk, ALGORITHMS)))) == {("k1", algorithm) for algorithm in ALGORITHMS}


# At start


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda provider: setattr(provider, "status", 404), "it answers 404"),
        (lambda provider: setattr(provider, "body", b"{}"), "it is no key set"),
        (lambda provider: setattr(provider, "body", b"["), "it is no key set"),
        (lambda provider: setattr(provider, "body", b"\xff" * 100), "it is no key set"),
        (lambda provider: setattr(provider, "body", b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "it is no key set"),
        (lambda provider: setattr(provider, "body", key_set({"kty": "oct"})), "it has no key"),
        (lambda provider: setattr(provider, "body", b" " * (MAX_SET_BYTES + 1)), "it has more than"),
    ],
)
async def test_a_set_of_no_use_is_one_line_that_names_the_setting(
    provider: Provider, spoil: Callable[[Provider], None], says: str
) -> None:
    spoil(provider)
    line = await refusal(provider.url)

    assert line.startswith(f"ROLLCALL_JWT_JWKS_URL: no keys from 127.0.0.1: {says}")


async def test_a_redirect_leads_nowhere(provider: Provider) -> None:
    provider.status, provider.headers = 302, {"Location": provider.url}

    assert "it answers 302" in await refusal(provider.url)
    assert provider.asked == 1


async def test_a_provider_that_is_away_or_silent_is_one_line_without_the_password(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = await refusal("http://ann:hush@127.0.0.1:1/keys?token=hush")
    assert "it cannot be reached" in away
    provider.open.clear()
    monkeypatch.setattr(keys_module, "FETCH_SECONDS", 0.1)
    silent = await refusal(provider.url.replace("//", "//ann:hush@"))
    assert "no answer within" in silent
    assert "hush" not in away + silent


async def test_neither_a_secret_nor_a_url_is_one_line_that_names_both() -> None:
    line = await refusal("")

    assert line.startswith("ROLLCALL_JWT_SECRET is not set, and neither is ROLLCALL_JWT_JWKS_URL")


async def refusal(url: str) -> str:
    with pytest.raises(StartupFailed) as failed:
        async with open_keys("", url):
            raise AssertionError("opened")
    line = str(failed.value)
    assert "\n" not in line
    return line
