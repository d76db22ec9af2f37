"""Who may come in, and how often they may ask: the same by Socket.IO and by HTTP."""

import asyncio
from collections.abc import Collection
from typing import Final

from aiohttp import web

from gateway.addresses import Network, client_address, neighbourhood
from gateway.auth import Tokens, User
from gateway.limits import Buckets, Limit
from gateway.usage import Usage
from shared.errors import Refused

REFUSED_TOKENS: Final = Limit(burst=600, per_second=10)
"""How many bad tokens one address may show. Those that have merely expired are not counted: a school's expire together."""
_FORGET_SECONDS: Final = 10.0


class Door:
    """Checks who comes, and counts what they ask."""

    def __init__(self, tokens: Tokens, usage: Usage, trusted_proxies: Collection[Network] = ()) -> None:
        self._tokens = tokens
        self._usage = usage
        self._trusted_proxies = trusted_proxies
        self._refused = Buckets(REFUSED_TOKENS)

    async def admit(self, token: object, address: str) -> User:
        """Tell whose token this is, shown from an `origin`.

        Raises Refused as `Tokens.check` does, and `rate_limited` for one bad token too many.

        A good token is always good: a whole school may sit behind the address of somebody who tries bad ones.
        """
        try:
            return await self._tokens.check(token)
        except Refused as refused:
            if refused.code == "unauthenticated":
                self._refused.take(address, asyncio.get_running_loop().time())
            raise

    def count(self, user: User) -> None:
        """Count a command or request of somebody who is in; raise Refused, `rate_limited`, for one too many."""
        self._usage.count(user.actor.id)

    async def look_after(self) -> None:
        """Forget the addresses from which nobody tries any more, for ever; whoever starts this guards it."""
        while True:
            await asyncio.sleep(_FORGET_SECONDS)
            self._refused.forget_idle(asyncio.get_running_loop().time())

    def origin(self, request: web.BaseRequest) -> str:
        """Tell where the client of a request sits, in spite of the proxies between: its neighbourhood."""
        forwarded = request.headers.getall("X-Forwarded-For", ())
        return neighbourhood(client_address(request.remote, forwarded, self._trusted_proxies))
