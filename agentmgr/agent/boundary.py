"""Where an author's failure stops: it is caught here, whole, and never ends the host or another session."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from attrs import frozen

T = TypeVar("T")

logger = logging.getLogger("agentmgr.agent")


@frozen
class Failure:
    """What an author's code raised instead of returning."""

    error: BaseException


async def contain(work: Callable[[], Awaitable[T]]) -> T | Failure:
    """Awaits `work`; an exception of the author's becomes a value. Cancellation passes through.

    `except Exception` alone would miss three things an author's code does: `sys.exit()`; raising
    `GeneratorExit` on; and failing in a clean-up while being cancelled, which makes a group of both.
    """
    try:
        return await work()
    except (Exception, SystemExit, GeneratorExit) as error:
        return Failure(error)
    except BaseExceptionGroup as group:
        ours, theirs = group.split((trio.Cancelled, KeyboardInterrupt))
        if ours is None:
            return Failure(group)
        if theirs is not None:
            logger.error("failed while being cancelled", exc_info=theirs)
        raise ours from None
