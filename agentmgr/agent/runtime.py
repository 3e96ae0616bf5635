"""Where an author's code runs: in trio, like the host, or on an asyncio loop (`aio.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import trio

from ..boundary import causes, message_of
from ..models.host_config import Runtime
from .imports import hosts_first
from .session import Session


class AgentRuntime(Protocol):
    """All of it is called from trio."""

    kind: Runtime

    async def call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Awaits `function(*args)` where the author's code runs. Cancelled here, it is cancelled there."""

    def iterate(self, items: AsyncIterator[Any]) -> ClosableIterator:
        """What the author's generator yields. Closed here, it is closed there."""

    async def take_turn(self) -> None:
        """Returns when the author's loop has had a turn; not before, if it is blocked."""

    def dress(self, session: Session) -> Any:
        """The session as the author's code can await it."""

    def dress_websocket(self, websocket: Any) -> Any:
        """A raw connection as the author's code can await it."""


class ClosableIterator(Protocol):
    def __aiter__(self) -> AsyncIterator[Any]: ...
    async def aclose(self) -> None: ...


class TrioRuntime:
    """The author's code runs as the host does."""

    kind = Runtime.TRIO

    async def call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return await function(*args)

    def iterate(self, items: Any) -> ClosableIterator:
        return items  # type: ignore[no-any-return]  # an async generator

    async def take_turn(self) -> None:
        await trio.lowlevel.checkpoint()

    def dress(self, session: Session) -> Any:
        return session

    def dress_websocket(self, websocket: Any) -> Any:
        return websocket


async def open_runtime(kind: Runtime, nursery: trio.Nursery) -> AgentRuntime:
    """A runtime that works until `nursery` is cancelled."""
    if kind is not Runtime.ASYNCIO:
        return TrioRuntime()
    with hosts_first():
        from .aio import AsyncioRuntime  # not before it is needed: asyncio takes 40 ms to import

    runtime = AsyncioRuntime()
    await nursery.start(runtime.run)
    return runtime


# What each says when it runs in the other's loop, in the words of Python 3.11 to 3.13 and trio 0.30 on.
_WANTS_ASYNCIO = (
    "no running event loop",
    "There is no current event loop",
    "unknown async library, or not in async context",
    "trio got unexpected <",
    "are you trying to use a library written for asyncio",
    "got Future <",
    "trio.run received unrecognized yield message",
    "'NoneType' object has no attribute 'create_future'",  # asyncio.Event, asyncio.Queue
    "cannot determine the parent task",  # asyncio.TaskGroup
    "should be used inside a task",  # asyncio.timeout, aiohttp
)
_WANTS_TRIO = (
    "must be called from async context",
    "'RunContext' object has no attribute",
    "Task got bad yield",
    "this function needs to be run in trio",
)


_WANTS_NO_LOOP = (
    "asyncio.run() cannot be called from a running event loop",
    "event loop is already running",
    "while another loop is running",
    "Attempted to call run() from inside a run()",
)


def remedy(error: BaseException, kind: Runtime) -> str | None:
    """What an author can do about an error of his code, where that is known: mostly, which switch to set."""
    said = list(map(message_of, causes(error)))

    def has_one(signs: tuple[str, ...]) -> bool:
        return any(sign in text for text in said for sign in signs)

    if has_one(_WANTS_NO_LOOP):
        return "an event loop runs here already: `await` it in an `async def`, in place of `run`"
    signs, needed = (_WANTS_TRIO, "trio") if kind is Runtime.ASYNCIO else (_WANTS_ASYNCIO, "asyncio")
    if has_one(signs):
        return (
            f'this code needs {needed}: write RUNTIME = "{needed}" into the agent file, '
            f"or register or serve it with --runtime {needed}"
        )
    return None
