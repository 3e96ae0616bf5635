"""A coroutine that runs beside the body of an `async with` block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType

import trio

from ..errors import AgentManagerError, leaves


class Companion:
    """What `__aenter__` and `__aexit__` of a class with a `run` method have in common.

    An error of ours while it starts, and the body's own error, leave as they are. An error of `run` after its
    start cancels the body and leaves in an exception group, as from any nursery.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def begin(self, run: Callable[..., Awaitable[object]]) -> None:
        """Returns when `run` has reported that it started."""
        failure: AgentManagerError | None = None
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            try:
                await nursery.start(run)
                self._stack = stack.pop_all()
            except AgentManagerError as error:  # so that it leaves as it is, and not in the nursery's group
                failure = error
        if failure is not None:
            raise failure

    async def end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Returns when `run` has; asking it to end is the caller's part."""
        if error is not None and any(isinstance(leaf, trio.Cancelled) for leaf in leaves(error)):
            await self._stack.__aexit__(kind, error, trace)
        else:  # the body's own error is no failure of `run`, and leaves without a group around it
            await self._stack.aclose()
