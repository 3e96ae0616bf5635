"""Work off the loop that must be done, also where the system has no room for another thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

Args = TypeVarTuple("Args")
T = TypeVar("T")


async def in_thread(work: Callable[[*Args], T], *args: *Args, limiter: trio.CapacityLimiter) -> T:
    """In a thread if there is one; else here, which delays all others by as long as the work takes.

    What ends an instance must not fail for want of a thread: that instance may be what has taken them all.
    """
    try:
        return await trio.to_thread.run_sync(work, *args, limiter=limiter)
    except RuntimeError:  # "can't start new thread"
        return work(*args)
