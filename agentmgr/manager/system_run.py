"""A manager without a nursery around it, for code in the style of the guide: `await manager.start()`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from ..errors import AgentManagerError


class SystemRun:
    """Runs one coroutine function as a trio system task.

    trio cancels system tasks when the main task is done, so what runs here is wound up in order even where
    the caller forgets to stop it.
    """

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._started = trio.Event()
        self._ended = trio.Event()
        self._error: Exception | None = None

    async def start(self, run: Callable[..., Awaitable[object]]) -> None:
        """Return when `run` has reported that it started; raise what it raised before that."""
        trio.lowlevel.spawn_system_task(self._main, run)
        await self._started.wait()
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """Cancel it, wait until it has ended, and raise what it raised."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):  # `stop` is called in `finally`, perhaps while being cancelled
            await self._ended.wait()
        if self._error is not None:
            raise self._error

    async def _main(self, run: Callable[..., Awaitable[object]]) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    try:
                        await nursery.start(run)
                    except AgentManagerError as error:  # as it is, and not in the nursery's group
                        self._error = error
                    self._started.set()
        except Exception as error:  # a system task that raises would crash the whole program
            self._error = error
        finally:
            self._started.set()
            self._ended.set()
