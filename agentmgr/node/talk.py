"""One link, from either of its ends, until it is down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

from ..errors import AgentManagerError
from ..link import Link

Received = TypeVar("Received")


async def talk(link: Link[Any, Received], receive: Callable[[Received], object]) -> str:
    """Sends what is put into it, and calls `receive` with each message; returns why it is down.

    Raises `InvalidRequest` for what is no message, and what `AgentManagerError` `receive` raises: the link is
    down then, too.
    """
    why, failure = "the other side has closed it, or says nothing any more", None
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal why
            try:
                await link.run()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                why = str(error) or why
            nursery.cancel_scope.cancel()

        nursery.start_soon(send)
        try:
            while (message := await link.receive()) is not None:
                receive(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            why = str(error) or why
        except AgentManagerError as error:  # as it is, and not in the nursery's group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return why
