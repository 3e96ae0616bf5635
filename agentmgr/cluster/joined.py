"""The engine whose machines are those that have joined: who is linked is there, and nothing is reserved."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from ..core.cluster_fields import unreservable
from ..models import ServiceConfig
from .engine import Claim, EngineObserver, Wish


class JoinedEngine:
    async def run(self, observer: EngineObserver) -> None:
        """Says nothing: machines come and go by their links."""
        await trio.sleep_forever()

    def refusal(self, config: ServiceConfig) -> str | None:
        return unreservable(config)

    async def claim(self, wish: Wish, claim_id: str, prefer: str | None) -> Claim:
        raise AssertionError("refusal() comes first")

    async def release(self, claim_id: str) -> None:
        await trio.lowlevel.checkpoint()

    async def claims(self) -> Mapping[str, Claim]:
        await trio.lowlevel.checkpoint()
        return {}

    def troubles(self) -> tuple[str, ...]:
        return ()
