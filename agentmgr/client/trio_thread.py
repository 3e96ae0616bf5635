"""Calls trio from asyncio: in a thread of its own, which lives while a caller has need of it.

A thread, and not trio's guest mode: `agentmgr.agent.aio` says what that costs in the other direction. And
asyncio's loop, its signals and its debugger are left alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import outcome
import trio

T = TypeVar("T")


async def in_trio(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Awaits `function(*args)` there. Cancelled here, it is cancelled there, and awaited."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[outcome.Outcome[T]] = loop.create_future()
    scope = trio.CancelScope()

    async def run() -> None:
        result: outcome.Outcome[T] = outcome.Error(asyncio.CancelledError())
        try:
            with scope:
                result = outcome.Value(await function(*args))
        except Exception as error:
            result = outcome.Error(error)
        finally:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(done.set_result, result)

    with _thread() as thread:
        tell_trio(partial(thread.nursery.start_soon, run))
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            tell_trio(scope.cancel)
            await asyncio.wait([done])
            raise
        return done.result().unwrap()


def tell_trio(function: Callable[[], object]) -> None:
    """Has it called there, soon."""
    with _thread() as thread:
        thread.token.run_sync_soon(function)


@asynccontextmanager
async def entered(make: Callable[[], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
    """What `make()` gives, entered and left there."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[tuple[T, trio.Event]] = loop.create_future()

    async def stay() -> None:
        leave = trio.Event()
        async with make() as value:
            loop.call_soon_threadsafe(opened.set_result, (value, leave))
            await leave.wait()

    with _thread():
        staying = asyncio.ensure_future(in_trio(stay))
        try:
            first: list[asyncio.Future[Any]] = [staying, opened]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if opened.done():
                yield opened.result()[0]
        finally:
            if opened.done():
                tell_trio(opened.result()[1].set)
            else:
                staying.cancel()
            await staying


class _TrioThread:
    """Runs trio until it is ended."""

    def __init__(self) -> None:
        self.users = 0
        begun: Future[tuple[trio.lowlevel.TrioToken, trio.Nursery]] = Future()
        threading.Thread(target=trio.run, args=(self._main, begun), name="agentmgr.client").start()
        self.token, self.nursery = begun.result()

    async def _main(self, begun: Future[tuple[trio.lowlevel.TrioToken, trio.Nursery]]) -> None:
        async with trio.open_nursery() as nursery:
            begun.set_result((trio.lowlevel.current_trio_token(), nursery))
            await trio.sleep_forever()

    def end(self) -> None:
        self.token.run_sync_soon(self.nursery.cancel_scope.cancel)


_lock = threading.Lock()
_running: _TrioThread | None = None


@contextmanager
def _thread() -> Iterator[_TrioThread]:
    """The one of this process; begun for the first user, ended behind the last one."""
    global _running
    with _lock:
        thread = _running = _running or _TrioThread()
        thread.users += 1
    try:
        yield thread
    finally:
        with _lock:
            thread.users -= 1
            if not thread.users:
                _running = None
                thread.end()
