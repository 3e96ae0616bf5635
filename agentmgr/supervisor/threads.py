"""Work for a thread that must be done even if the system cannot start another thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

Args = TypeVarTuple("Args")
T = TypeVar("T")


async def in_thread(work: Callable[[*Args], T], *args: *Args, limiter: trio.CapacityLimiter) -> T:
    """Runs it in a thread; without one to be had, here, which blocks the loop for as long as the work takes.

    To end an instance must not fail for want of a thread: it may be that instance that has taken them all.
    """
    try:
        return await trio.to_thread.run_sync(work, *args, limiter=limiter)
    except RuntimeError:  # "can't start new thread"
        return work(*args)
