"""One connection between a manager and a worker: lines in both directions, in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from .protocol import Order, Report, encode

Message = TypeVar("Message")

STALL_S = 10.0  #: a peer that reads nothing for so long is stalled
_CHUNK_BYTES = 2**18


class ManagerLink(Generic[Message]):
    """Sends while `run` runs, queued messages in one write. It does not close the stream."""

    def __init__(
        self, stream: trio.abc.Stream, decode: Callable[[bytes], Message], *, silence_s: float = math.inf
    ) -> None:
        """`silence_s`: a peer that is silent for so many seconds counts as gone."""
        self._stream = stream
        self._decode = decode
        self._silence_s = silence_s
        self._received: list[bytes] = []  # complete lines, the next one last
        self._rest: list[bytes] = []  # of a line that is not complete yet
        self._pending: list[bytes] = []
        self._more = trio.Event()
        self._flushed = trio.Event()
        self._flushed.set()

    def put(self, *messages: Report | Order) -> None:
        self.put_lines(*map(encode, messages))

    def put_lines(self, *lines: bytes) -> None:
        """For messages that go to several peers, and are encoded once."""
        if lines:
            self._pending += lines
            self._more.set()
            if self._flushed.is_set():
                self._flushed = trio.Event()

    async def flushed(self) -> None:
        """Returns when everything so far has been handed to the socket."""
        await self._flushed.wait()

    async def run(self) -> None:
        """Until cancelled. Raises `trio.BrokenResourceError`: the peer has gone, or does not read."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            data, self._pending = b"".join(self._pending), []
            with trio.move_on_after(STALL_S) as patience:
                await self._stream.send_all(data)
            if patience.cancelled_caught:
                raise trio.BrokenResourceError("the peer does not read")
            if not self._pending:
                self._flushed.set()

    async def receive(self) -> Message | None:
        """The next message; None when the peer has gone, or is silent.

        Raises `InvalidRequest` for what is no message, `trio.BrokenResourceError`.
        """
        while not self._received:
            data = b""
            with trio.move_on_after(self._silence_s):
                data = bytes(await self._stream.receive_some(_CHUNK_BYTES))
            if not data:
                return None
            *lines, rest = data.split(b"\n")
            if lines:
                lines[0] = b"".join([*self._rest, lines[0]])
                self._received, self._rest = lines[::-1], []
            self._rest.append(rest)
        return self._decode(self._received.pop())
