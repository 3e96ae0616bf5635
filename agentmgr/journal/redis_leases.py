"""Which hosts live, by leases in Redis: see `redis_keys`.

A host renews its own in a thread, over a connection of its own: an agent whose code holds up the event loop
is busy, and not gone. A manager need not wait for a lease to end: it revokes it once it knows that the
process has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio
from attrs import define

from .redis_connection import Redis, RedisAddress, RedisTrouble, open_redis
from .redis_keys import RENEW_S, Keys
from .redis_scripts import LIVING, RENEW, REVOKE


async def revoke(redis: Redis, keys: Keys, *holders: str) -> None:
    """Any other host may claim what these hold, also where Redis does not know them, yet.

    Raises `RedisTrouble`.
    """
    await redis.run(REVOKE, [keys.meta], *holders)


async def living(redis: Redis, keys: Keys) -> frozenset[str]:
    """The holders that may hold. Raises `RedisTrouble`."""
    found = await redis.run(LIVING, [keys.meta])
    return frozenset(holder.decode() for holder in found)


@define
class Written:
    """What of a holder Redis has for certain."""

    made: str = ""  #: the mark of the journal; "": it was not open yet
    batch: int = 0
    claims: int = 0


class Lease:
    """Keeps a holder's lease. `failed` and `stale` are called in the thread of the journal."""

    def __init__(
        self,
        address: RedisAddress,
        keys: Keys,
        holder: str,
        written: Written,
        *,
        patience_s: float,
        renew_s: float = RENEW_S,
    ) -> None:
        self._address, self._keys, self._holder, self._written = address, keys, holder, written
        self._patience_s, self._renew_s = patience_s, renew_s

    async def keep(self, failed: Callable[[RedisTrouble], None], stale: Callable[[], None]) -> None:
        """Until it is cancelled. `failed`: for longer than it is waited; `stale`: Redis lacks what it had."""
        ours = trio.lowlevel.current_trio_token()
        scope = trio.CancelScope()  # of what runs in the thread
        theirs: list[trio.lowlevel.TrioToken] = []
        is_over = False

        async def run() -> None:
            theirs.append(trio.lowlevel.current_trio_token())
            with scope:
                if is_over:  # before it had begun
                    return
                async with open_redis(self._address) as redis:
                    await self._renew(
                        redis,
                        lambda trouble: ours.run_sync_soon(failed, trouble),
                        lambda: ours.run_sync_soon(stale),
                    )

        async with trio.open_nursery() as nursery:
            in_thread = partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(1))
            nursery.start_soon(in_thread, lambda: trio.run(run))
            try:
                await trio.sleep_forever()
            finally:
                is_over = True
                for token in theirs:
                    token.run_sync_soon(scope.cancel)

    async def _renew(
        self, redis: Redis, failed: Callable[[RedisTrouble], None], stale: Callable[[], None]
    ) -> None:
        since: float | None = None  # when it began to fail
        while True:
            before = Written(self._written.made, self._written.batch, self._written.claims)
            try:
                made, batch, claims = await redis.run(RENEW, [self._keys.meta], self._holder, before.made)
            except RedisTrouble as trouble:
                since = trio.current_time() if since is None else since
                if not trouble.passes or trio.current_time() - since >= self._patience_s:
                    failed(trouble)
                await trio.sleep(self._renew_s / 10)
                continue
            since = None
            if before.made and _lacks(before, made, batch, claims):
                stale()
            await trio.sleep(self._renew_s)


def _lacks(written: Written, made: bytes | None, batch: bytes | None, claims: bytes | None) -> bool:
    is_another = (made or b"").decode() != written.made
    return is_another or int(batch or 0) < written.batch or int(claims or 0) < written.claims
