"""A coroutine that runs beside the body of an `async with` block, or without a block around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType

import trio

from ..errors import AgentManagerError, leaves


def require_trio(
    what: str,
    *,
    instead: str = "call trio.run in a thread for it, as examples/fastapi_manager.py does",
) -> None:
    """Raises `RuntimeError` with what to do where another event loop runs, or none."""
    if not trio.lowlevel.in_trio_run():
        raise RuntimeError(f"{what} needs trio, and runs in no other event loop: {instead}")


class Companion:
    """Runs a class's `run` method in a task while an `async with` block of it is open.

    An error of ours while it starts, and the body's own error, leave as they are. An error of `run` after its
    start cancels the body and leaves in an exception group, as from any nursery.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def begin(self, run: Callable[..., Awaitable[object]]) -> None:
        """Returns when `run` has reported that it started."""
        require_trio(type(getattr(run, "__self__", run)).__name__)
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


class SystemRun:
    """Runs one coroutine function as a trio system task, for `start()` and `stop()` of a class with `run`.

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
        require_trio(type(getattr(run, "__self__", run)).__name__)
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
