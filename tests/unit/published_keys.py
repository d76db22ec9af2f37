"""An identity provider for tests: its keys, the set it publishes, and tokens signed with them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ALGORITHMS = ("RS256", "ES256", "EdDSA")
_MAKERS: dict[str, Any] = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


@cache
def private_key(algorithm: str, number: int) -> Any:
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def jwk(algorithm: str, kid: str | None = "k1", number: int = 1, **more: Any) -> dict[str, Any]:
    """A key as it is published."""
    public = _MAKERS[algorithm].to_jwk(private_key(algorithm, number).public_key(), as_dict=True)
    public.pop("key_ops", None)
    return {**public, **({} if kid is None else {"kid": kid}), **more}


def key_set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def token(algorithm: str, kid: str | None = "k1", number: int = 1, key: Any = None, **headers: Any) -> str:
    """Ann's, signed with a key."""
    claims = {"sub": "ann", "role": "student", "exp": datetime.now(UTC) + timedelta(hours=1)}
    named = {**({} if kid is None else {"kid": kid}), **headers}
    return jwt.encode(claims, key or private_key(algorithm, number), algorithm=algorithm, headers=named)


@dataclass
class Provider:
    """Who publishes a set, counts who asks, and may be away."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    asked_again: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def publish(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.asked > 1:
            self.asked_again.set()
        await self.open.wait()
        return web.Response(body=self.body, status=self.status, headers=self.headers)


@asynccontextmanager
async def publishing(provider: Provider) -> AsyncIterator[Provider]:
    """Let a provider answer at its URL."""
    provider.open.set()
    app = web.Application()
    app.add_routes([web.get("/keys", provider.publish)])
    async with TestServer(app) as server:
        provider.url = str(server.make_url("/keys"))
        yield provider
        provider.open.set()
