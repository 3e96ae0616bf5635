"""How much of the API one address may have, so that the others and the services' own upkeep have the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendEvent, Scope

from ..core.admission import RateLimit
from .connection import PEER_UID
from .problems import HttpProblem

REQUESTS_AT_ONCE = 100  #: from one address; a followed log or event stream is one as long as it is followed

_EXCESS = "agentmgr.excess"


class Throttle:
    """Counts requests by address; the application refuses those that are too many, with `check_excess`.

    Counted is outside of it, because an answer may go on long after the application has returned it.
    """

    def __init__(self, requests_per_second: float, *, at_once: int = REQUESTS_AT_ONCE) -> None:
        self._rate = RateLimit(requests_per_second)
        self._at_once = at_once
        self._open = Counter[str]()

    def around(self, app: ASGIFramework) -> ASGIFramework:
        async def counted(
            scope: Scope, receive: ASGIReceiveCallable, send: Callable[[ASGISendEvent], Awaitable[None]]
        ) -> None:
            details: dict[str, Any] = scope  # type: ignore[assignment]  # which are ours to add to
            # The users of this machine share its addresses: each has a share of its own.
            address = f"{(details.get('client') or ('',))[0]} {details.get('state', {}).get(PEER_UID)}"
            if self._open[address] >= self._at_once:
                details[_EXCESS] = f"This address has {self._at_once} requests open; wait for one to end."
            elif not self._rate.allows(address, trio.current_time()):
                details[_EXCESS] = "This address asks too often; wait a second."
            self._open[address] += 1
            try:
                await app(scope, receive, send)
            finally:
                self._open[address] -= 1
                if not self._open[address]:
                    del self._open[address]

        return counted


def check_excess(scope: Any) -> None:
    """Raises `HttpProblem` for a request that is one too many."""
    if excess := scope.get(_EXCESS):
        raise HttpProblem(429, "too_many_requests", excess, headers={"Retry-After": "1"})
