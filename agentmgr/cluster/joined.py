"""The engine whose machines are those that have joined: who is linked is there, and nothing is reserved."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from ..models import ServiceConfig
from .engine import Claim, EngineObserver, Wish

_CLAIMS = ("cpus", "gpus", "memory_mb", "resources")


class JoinedEngine:
    async def run(self, observer: EngineObserver) -> None:
        """Says nothing: machines come and go by their links."""
        await trio.sleep_forever()

    def refusal(self, config: ServiceConfig) -> str | None:
        asked = [name for name in _CLAIMS if getattr(config, name, None)]
        if not asked:
            return None
        return (
            f"{', '.join(asked)}: nothing is reserved in a cluster of joined nodes; leave it out, and choose "
            "nodes by their labels with place_on (memory_limit_mb and cpu_limit_percent limit an instance)"
        )

    async def claim(self, wish: Wish, claim_id: str, prefer: str | None) -> Claim:
        raise AssertionError("refusal() comes first")

    async def release(self, claim_id: str) -> None:
        await trio.lowlevel.checkpoint()

    async def claims(self) -> Mapping[str, Claim]:
        await trio.lowlevel.checkpoint()
        return {}

    def troubles(self) -> tuple[str, ...]:
        return ()
