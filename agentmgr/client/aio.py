"""`open_session` and `ManagerClient` for asyncio: FastAPI, Jupyter, a Discord bot.

    from agentmgr.client.aio import ManagerClient, open_session

    async with open_session("ws://localhost:9090") as session:
        print(await session.ask("hello"))

Names, arguments, events and errors are those of `agentmgr.client`; callbacks run on the caller's loop.
Beneath, the clients for trio run in a thread (`trio_thread`), one for the process while it is needed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from . import api, session, sessions
from .events import AgentEvent
from .http import Response
from .rest import RestClient
from .talk import Talk
from .trio_thread import entered, in_trio, tell_trio

__all__ = ["AgentSession", "ManagerClient", "open_session"]


@asynccontextmanager
async def open_session(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    session_id: str | None = None,
    last_seq: int = 0,
    reconnect_for_s: float = 60.0,
    on_disconnect: Callable[[], None] | None = None,
    locate: Callable[[], Awaitable[str]] | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[AgentSession]:
    """As `agentmgr.client.open_session`, without `dial`: what that connects is a stream of trio's."""
    loop = asyncio.get_running_loop()

    def disconnected() -> None:
        if on_disconnect is not None:
            loop.call_soon_threadsafe(on_disconnect)

    async def locate_here(locate: Callable[[], Awaitable[str]]) -> str:
        async def here() -> str:
            return await locate()

        located = asyncio.run_coroutine_threadsafe(here(), loop)
        return await trio.to_thread.run_sync(located.result, abandon_on_cancel=True)

    async with entered(
        lambda: session.open_session(
            url,
            headers=headers,
            session_id=session_id,
            last_seq=last_seq,
            reconnect_for_s=reconnect_for_s,
            on_disconnect=disconnected,
            locate=locate and partial(locate_here, locate),
            ssl_context=ssl_context,
        )
    ) as in_thread:
        yield AgentSession(in_thread)


class AgentSession(Talk):
    """Made by `open_session`."""

    def __init__(self, in_thread: session.AgentSession) -> None:
        self._in_thread = in_thread
        self._arrived: deque[AgentEvent] = deque()

    @property
    def session_id(self) -> str | None:
        return self._in_thread.session_id

    @property
    def last_seq(self) -> int:
        """Of the last event taken in; with `session_id` it resumes elsewhere."""
        return self._in_thread.last_seq

    async def receive(self) -> AgentEvent:
        while not self._arrived:
            await in_trio(self._take)
        return self._arrived.popleft()

    async def _take(self) -> None:
        """Takes all that is there: a stream crosses once for many, and a cancelled caller loses none."""
        self._arrived.append(await self._in_thread.receive())
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while len(self._arrived) < session.BUFFERED_EVENTS:
                self._arrived.append(self._in_thread.receive_nowait())

    async def _post(self, event: str, *, key: str = "", **fields: Any) -> None:
        await in_trio(partial(self._in_thread._post, event, key=key, **fields))

    def cut(self) -> None:
        """Drops the connection as a broken network would; a new one is made at once."""
        tell_trio(self._in_thread.cut)


class _Crossing(RestClient):
    """Each call is made by a client for trio."""

    def __init__(self, target: Path | str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        super().__init__(target, token=token, timeout_s=timeout_s)
        self._in_thread = RestClient(target, token=token, timeout_s=timeout_s)

    async def _answer(self, method: str, path: str, *, waits: bool = False, **options: Any) -> bytes:
        return await in_trio(partial(self._in_thread._answer, method, path, waits=waits, **options))

    @asynccontextmanager
    async def _stream(self, method: str, path: str, **options: Any) -> AsyncIterator[Response]:
        async with entered(lambda: self._in_thread._stream(method, path, **options)) as response:
            yield _Response(response)


class _Response(Response):
    def __init__(self, in_thread: Response) -> None:
        self.status = in_thread.status
        self._in_thread = in_thread

    async def receive(self) -> bytes:
        return await in_trio(self._in_thread.receive)


class SessionsClient(sessions.SessionsClient, _Crossing):
    """As `agentmgr.client`'s, for asyncio."""


class ManagerClient(api.ManagerClient, _Crossing):
    """As `agentmgr.client.ManagerClient`, for asyncio; `async with` may be left out."""

    @property
    def sessions(self) -> SessionsClient:
        """The conversations of hosted agents."""
        return SessionsClient(self)
