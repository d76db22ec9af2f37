"""The keys that tokens are checked with: one secret, or the set that an identity provider publishes and changes.

Which algorithm a key is for is said by the key, never by a token: a token names its key, and must be signed as that key signs.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import aiohttp
import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from msgspec import Raw, Struct

from shared.errors import Refused, StartupFailed
from shared.process import guarded

log = structlog.get_logger()

SETTING: Final = "ROLLCALL_JWT_JWKS_URL"
SECRET_ALGORITHM: Final = "HS256"
REFRESH_SECONDS: Final = 300.0
"""How often the set is fetched when nobody asks: so long at most does a key that was withdrawn still open, unless the set
cannot be had. Then the one before stays, however long that lasts.
"""
AGAIN_SECONDS: Final = 5.0
"""How soon after one fetch an unknown key may cause the next: tokens that name any key cost no more than that."""
FETCH_SECONDS: Final = 5.0
MAX_SET_BYTES: Final = 256 * 1024
_ALGORITHMS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_RSA_BITS: Final = range(2048, 8192 + 1)


class Keys(Protocol):
    """Finds what a token must be checked with."""

    async def find(self, algorithm: str, kid: str | None) -> Any:
        """Return the key of this id, which is for this algorithm; raise Refused when there is none."""


class Secret:
    """One secret, which the maker of the tokens knows too (HS256). What a token says of its key means nothing."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def find(self, algorithm: str, kid: str | None) -> str:
        """Return the secret."""
        if algorithm != SECRET_ALGORITHM:
            raise Refused("unauthenticated", "The token is not signed as it should be")
        return self._secret


class Unusable(Exception):
    """A key set could not be fetched, or is none."""


class PublishedKeys:
    """The keys at a URL: fetched at start, now and then, and when a token names one that is not known."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url
        self._keys: Mapping[tuple[str, str], Any] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._failed = False
        self._fetched_at = 0.0

    async def find(self, algorithm: str, kid: str | None) -> Any:
        """Return a key, having looked once whether it is new; raise Refused, `unavailable` when that cannot be known."""
        if algorithm not in _ALGORITHMS.values() or kid is None:
            raise Refused("unauthenticated", "The token names no key, or is not signed as it should be")
        if not self._knows(kid):
            await self._look_again()
        key = self._keys.get((kid, algorithm))
        if key is None and self._failed and not self._knows(kid):
            raise Refused("unavailable", "The token's key is not known, and the keys cannot be fetched now")
        if key is None:
            raise Refused("unauthenticated", "The token's key is not known")
        return key

    async def fetch(self) -> None:
        """Fetch the set and forget the one before; raise Unusable, and keep that one, when it cannot be had.

        A set without a key for us is one, too: what was withdrawn opens no more.
        """
        self._fetched_at = asyncio.get_running_loop().time()
        self._failed = True
        self._keys = read_keys(await self._download())
        self._failed = False

    @property
    def empty(self) -> bool:
        """Whether there is no key that could check a token."""
        return not self._keys

    async def look_after(self) -> None:
        """Fetch the set now and then, for ever; whoever starts this guards it."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self._fetch_together()

    async def close(self) -> None:
        """Give up a fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    def _knows(self, kid: str) -> bool:
        return any((kid, algorithm) in self._keys for algorithm in _ALGORITHMS.values())

    async def _look_again(self) -> None:
        if self._fetching is None and asyncio.get_running_loop().time() < self._fetched_at + AGAIN_SECONDS:
            return
        await self._fetch_together()

    async def _fetch_together(self) -> None:
        """Fetch, or wait for the fetch that is under way: whoever asks meanwhile shares it, and may leave before it ends."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._try())
        await asyncio.shield(self._fetching)

    async def _try(self) -> None:
        try:
            await self.fetch()
            if self.empty:
                log.warning("keys.none_left")
        except Unusable as error:
            log.warning("keys.not_fetched", reason=str(error))
        except Exception:
            log.exception("keys.not_fetched")
        finally:
            self._fetching = None

    async def _download(self) -> bytes:
        body = bytearray()
        try:
            # What a redirect points to nobody has configured.
            async with self._http.get(self._url, allow_redirects=False) as response:
                if response.status != 200:
                    raise Unusable(f"it answers {response.status}")
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > MAX_SET_BYTES:
                        raise Unusable(f"it has more than {MAX_SET_BYTES} bytes")
        except TimeoutError:
            raise Unusable(f"no answer within {FETCH_SECONDS:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text may hold the URL, and that a password.
            raise Unusable(f"it cannot be reached ({type(error).__name__})") from None
        return bytes(body)


class _Set(Struct):
    keys: list[Raw]


class _Key(Struct):
    """What is looked at of a key (RFC 7517); what else it says is left alone."""

    kty: str
    kid: str
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    crv: str | None = None
    n: str | None = None
    e: str | None = None
    x: str | None = None
    y: str | None = None


def read_keys(body: bytes) -> dict[tuple[str, str], Any]:
    """Read a key set: its keys by id and algorithm, less those that are for something else; raise Unusable if it is none."""
    try:
        published = msgspec.json.decode(body, type=_Set)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Unusable("it is no key set") from None
    keys: dict[tuple[str, str], Any] = {}
    for raw in published.keys:
        try:
            key = msgspec.json.decode(raw, type=_Key)
            if (algorithm := _algorithm(key)) is not None:
                keys.setdefault((key.kid, algorithm), _made(key, algorithm))
        except (msgspec.MsgspecError, jwt.PyJWTError, ValueError, TypeError):
            continue  # one that nobody understands makes the others no worse
    return keys


def _algorithm(key: _Key) -> str | None:
    """Tell the one algorithm that a key is for; None when it is not for checking our tokens."""
    algorithm = _ALGORITHMS.get((key.kty, None if key.kty == "RSA" else key.crv))
    checks = key.use in (None, "sig") and (key.key_ops is None or "verify" in key.key_ops)
    return algorithm if checks and key.alg in (None, algorithm) else None


def _made(key: _Key, algorithm: str) -> Any:
    # Only its public half, whatever else was published.
    public = {name: value for name in ("kty", "crv", "n", "e", "x", "y") if (value := getattr(key, name)) is not None}
    made = jwt.PyJWK(public, algorithm).key
    if isinstance(made, RSAPublicKey) and made.key_size not in _RSA_BITS:
        raise ValueError("too short to be safe, or too long to be quick")
    return made


@asynccontextmanager
async def open_keys(secret: str, url: str) -> AsyncIterator[Keys]:
    """Keep the one that is given, a secret or a URL, for the length of the block; raise StartupFailed with one line."""
    if secret:
        yield Secret(secret)
    elif url:
        async with open_published_keys(url) as keys, guarded(keys.look_after):
            yield keys
    else:
        raise StartupFailed(f"ROLLCALL_JWT_SECRET is not set, and neither is {SETTING}: one of them must be")


@asynccontextmanager
async def open_published_keys(url: str) -> AsyncIterator[PublishedKeys]:
    """Fetch the keys at a URL, and have them for the length of the block; raise StartupFailed with one line."""
    # No cookies, no proxies out of the environment, and nothing compressed, which could be much larger than it looks.
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"},
    ) as http:
        keys = PublishedKeys(http, url)
        try:
            await keys.fetch()
            if keys.empty:
                raise Unusable("it has no key for RS256, ES256 or EdDSA with a kid")
        except Unusable as error:
            raise StartupFailed(f"{SETTING}: no keys from {urlsplit(url).hostname}: {error}") from error
        try:
            yield keys
        finally:
            await keys.close()
