"""Asks a hosted agent to end its sessions, and waits until the last of them has ended.

A host drains on when its manager is gone; the next manager asks it again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio
from attrs import frozen

from ..core.proof import DRAIN_PATH
from .host_request import HostRequest

_WAIT_S = 5.0  #: the host answers when no session is left, or after so long
_PATIENCE_S = 5.0  #: beyond that; a host that takes longer is busy, as when the agent blocks its loop
_PAUSE_S = 0.2  #: before the next try, after an error


@frozen
class HostDrain:
    """How to ask one instance."""

    ask: HostRequest

    async def __call__(self, code: int, answered: Callable[[bool], None]) -> None:
        """Begins the drain, with this close code, and returns when no session is left.

        Calls `answered` with whether the host knows when a session is idle. If it does not, this returns at
        once. A host that is too busy to answer is taken to know.
        """
        wait_s = 0.0
        while True:
            try:
                with trio.fail_after(wait_s + _PATIENCE_S):
                    answer = await self.ask(DRAIN_PATH, {"code": code, "wait_s": wait_s}, method="POST")
            except trio.TooSlowError:
                answered(True)
                continue
            except OSError:  # no descriptor left, or it is just ending
                await trio.sleep(_PAUSE_S)
                continue
            left = None if answer is None else answer.get("left")
            answered(left is not None)
            if not left:
                return
            wait_s = _WAIT_S

    async def close_code(self) -> int | None:
        """The close code that a manager has asked it to drain with before; None: it does not drain."""
        with trio.move_on_after(_PATIENCE_S), suppress(OSError):
            answer = await self.ask(DRAIN_PATH, {})
            return None if answer is None else answer.get("code")
        return None

    async def change_close_code(self, code: int) -> None:
        """Asks it once to close with this code instead; one that cannot answer now is asked at its end."""
        with trio.move_on_after(_PATIENCE_S), suppress(OSError):
            await self.ask(DRAIN_PATH, {"code": code}, method="POST")
