"""What all requests together may take of a gateway: its memory, and its loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from .problem import Problem

_BIG_BYTES = 256 * 1024  # JSON of this size takes 1 ms to parse, and 5 ms until it is said to an agent
_ONE = trio.CapacityLimiter(1)
Made = TypeVar("Made")


async def apart(size: int, work: Callable[[], Made]) -> Made:
    """What `work` makes of `size` bytes; of many in a thread, so that the streams of others go on.

    Threads take turns with the loop between two calls into C, of which the longest for 30 MB takes 30 ms.
    """
    return work() if size < _BIG_BYTES else await trio.to_thread.run_sync(work, limiter=_ONE)


class Memory:
    """The bytes that requests and unread answers hold at once, beyond what each may hold anyway."""

    def __init__(self, most: int, free: int) -> None:
        """`free`: of each of them, as of a WebSocket that is not accepted yet."""
        self.most = most
        self.free = free
        self.taken = 0  #: beyond that

    def held(self) -> Held:
        return Held(self)


class Held:
    """The part of one of them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._bytes = 0
        self.most = memory.most + memory.free

    def set(self, size: int) -> None:
        """It holds so many bytes now. Raises `Problem` where there is no room for more."""
        more = max(0, size - self._memory.free) - self._bytes
        if more > 0 and self._memory.taken + more > self._memory.most:
            message = "The gateway holds as many large requests as it has memory for."
            raise Problem(503, "gateway_full", message, headers=(("Retry-After", "2"),))
        self._memory.taken += more
        self._bytes += more

    def close(self) -> None:
        self.set(0)
