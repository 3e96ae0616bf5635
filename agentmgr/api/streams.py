"""Answers that go on: events, logs, listeners.

A Quart response body is entered and left by the task that sends it, so a nursery may live inside: the
producer is a child task, and the client's leaving or the server's stopping cancels it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType

import trio
from quart import Response
from quart.wrappers.response import ResponseBody

from .operations import Call

Send = Callable[[bytes], Awaitable[None]]
Produce = Callable[[Send], Awaitable[None]]


class StreamBody(ResponseBody):
    """Sends what `produce` sends, until it returns, the server should end, or the call's token ends.

    When nothing was sent for `keepalive_s` seconds, `keepalive` is: that notices clients which are gone, and
    keeps those that are not from being taken for dead.
    """

    def __init__(
        self,
        produce: Produce,
        call: Call,
        *,
        keepalive: bytes = b"",
        keepalive_s: float = 15.0,
    ) -> None:
        self._produce = produce
        self._call = call
        self._keepalive = keepalive
        self._keepalive_s = keepalive_s
        self._producing = trio.CancelScope()

    async def __aenter__(self) -> AsyncIterator[bytes]:
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            send, self._receive = trio.open_memory_channel[bytes](0)
            nursery.start_soon(self._run, send)
            nursery.start_soon(self._watch)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(exc_type, exc_value, tb)

    async def _run(self, channel: trio.MemorySendChannel[bytes]) -> None:
        async with channel:
            with self._producing, self._call.manager.while_valid(self._call.token):
                await self._produce(channel.send)

    async def _watch(self) -> None:
        await self._call.server.stopping.wait()
        self._producing.cancel()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while True:
            with trio.move_on_after(self._keepalive_s if self._keepalive else float("inf")):
                try:
                    return await self._receive.receive()
                except trio.EndOfChannel:
                    raise StopAsyncIteration from None
            return self._keepalive


def stream(body: StreamBody, content_type: str) -> Response:
    response = Response(
        body,
        content_type=content_type,
        # A proxy in between must neither keep nor delay it.
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
    response.timeout = None
    return response
