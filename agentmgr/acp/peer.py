"""One end of a JSON-RPC connection: reads lines, answers each request in a task of its own, and writes.

Nothing is written but by one task, so that no line is cut by a task that is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

import trio

from ..visible import visible
from .rpc import (
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    Answer,
    Id,
    Lines,
    Message,
    Notification,
    Refused,
    Request,
    RpcError,
    write,
)

LEAVE_TIMEOUT_S = 3.0  #: for what runs when the input ends
_AHEAD = 64  #: messages that wait to be written; beyond that, whoever says more waits

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Called at once, in the order of the lines, and awaited in a task. Its call may raise `RpcError` too."""


class Peer:
    def __init__(
        self,
        receive: Callable[[], Awaitable[bytes]],
        send: Callable[[bytes], Awaitable[None]],
        log: Callable[[str], None],
    ) -> None:
        """`receive` returns b"" at the end of the input. `log` is for lines that a person may read."""
        self.nursery: trio.Nursery  #: of all that is done for the other end, as long as `run` runs
        self.log = log
        self._receive, self._send = receive, send
        self._ids = count(1)
        self._asked: dict[Id, Callable[[Answer], None]] = {}
        self._outgoing, self._to_write = trio.open_memory_channel[bytes](_AHEAD)
        self._reading = trio.CancelScope()

    async def run(self, handler_of: Callable[[str], Handler | None], leave: Callable[[], None]) -> None:
        """Until the input ends or `stop` is called; then `leave` is called, to end what would go on."""
        async with trio.open_nursery() as writing:
            writing.start_soon(self._write)
            async with trio.open_nursery() as self.nursery:
                with self._reading:
                    await self._read(handler_of)
                leave()
                self.nursery.cancel_scope.deadline = trio.current_time() + LEAVE_TIMEOUT_S
            writing.cancel_scope.deadline = trio.current_time() + LEAVE_TIMEOUT_S
            self._outgoing.close()

    def stop(self) -> None:
        self._reading.cancel()

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        await self._outgoing.send(write({"method": method, "params": params}))

    async def ask(self, method: str, params: Mapping[str, Any]) -> Any:
        """The other end's result. Raises `RpcError` where it answers with an error."""
        id, answered = next(self._ids), trio.Event()
        answers: list[Answer] = []

        def take(answer: Answer) -> None:
            answers.append(answer)
            answered.set()

        self._asked[id] = take
        try:
            await self._outgoing.send(write({"id": id, "method": method, "params": params}))
            await answered.wait()
        finally:
            del self._asked[id]
        answer = answers[0]  # others to the same request do not count
        if answer.error is not None:
            code, why = answer.error.get("code"), answer.error.get("message")
            raise RpcError(code if isinstance(code, int) else INTERNAL_ERROR, str(why))
        return answer.result

    async def _read(self, handler_of: Callable[[str], Handler | None]) -> None:
        lines = Lines()
        while data := await self._receive():
            for message in lines.feed(data):
                await self._take(message, handler_of)

    async def _take(self, message: Message, handler_of: Callable[[str], Handler | None]) -> None:
        match message:
            case Refused(id, error):
                self.log(f"a message is refused: {visible(str(error))}")
                await self._outgoing.send(write({"id": id, "error": error.plain}))
            case Answer(id):
                if (take := self._asked.get(id)) is not None:
                    take(message)
            case Request(id, method, params):
                try:
                    handler = handler_of(method)
                    if handler is None:
                        raise RpcError(METHOD_NOT_FOUND, f"there is no method {method[:100]!r} here")
                    work = handler(params)
                except RpcError as error:
                    await self._outgoing.send(write({"id": id, "error": error.plain}))
                else:
                    self.nursery.start_soon(self._answer, id, work)
            case Notification(method, params):
                try:
                    if (handler := handler_of(method)) is not None:
                        self.nursery.start_soon(self._answer, None, handler(params), False)
                except RpcError as error:
                    self.log(f"{visible(method)}: {visible(error.message)}")

    async def _answer(self, id: Id, work: Awaitable[Any], is_request: bool = True) -> None:
        answer: dict[str, Any]
        try:
            answer = {"result": await work}
        except RpcError as error:
            self.log(visible(error.message))
            answer = {"error": error.plain}
        except Exception as error:  # the boundary: a request that fails, for whatever reason, ends no other
            self.log(f"internal error, please report it: {error!r}")
            answer = {"error": RpcError(INTERNAL_ERROR, f"internal error: {error!r}").plain}
        if is_request:
            await self._outgoing.send(write({"id": id, **answer}))

    async def _write(self) -> None:
        async for data in self._to_write:
            lines = [data]
            while len(lines) < _AHEAD:
                try:
                    lines.append(self._to_write.receive_nowait())
                except (trio.WouldBlock, trio.EndOfChannel):
                    break
            try:
                await self._send(b"".join(lines))
            except OSError:
                self.stop()  # the other end is gone
                return
