"""One connection between two parts of `agentmgr`: lines in both directions, in order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from .core.patience import Patience
from .errors import InvalidRequest

Sent = TypeVar("Sent")
Received = TypeVar("Received")

HEARTBEAT_S = 1.0  #: of a link between machines: the longest that either side sends nothing
SILENCE_S = 3.0  #: of a link between machines: a peer that sends nothing for so long counts as gone
_LONGEST_SILENCE_S = 12.0  #: the same, where former links ended by that: less than a manager waits for a node
_SOON_S = 60.0
_LATE_S = (
    0.5  #: for a process to notice that time is up; one that was later has no right to call others silent
)
STALL_S = 10.0  #: a peer that takes in nothing for so long is stalled
LONGEST_LINE_BYTES = 2**26  #: far more than a table of 10,000 instances (2.6 MB)
_CHUNK_BYTES = 2**18
_HEARTBEAT = b"\n"  # an empty line


def silence_patience() -> Patience:
    """Of one side with the silence of the other, from link to link."""
    return Patience(SILENCE_S, _LONGEST_SILENCE_S)


class Link(Generic[Sent, Received]):
    """Sends while `run` runs, queued messages in one write. It does not close the stream."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        encode: Callable[[Sent], bytes],
        decode: Callable[[bytes], Received],
        *,
        heartbeat_s: float = math.inf,
        silence_s: float = math.inf,
    ) -> None:
        """`encode` makes a line with its end, `decode` reads one without it, and raises `InvalidRequest`.

        `heartbeat_s`: an empty line is sent after so many seconds without another one; `silence_s`: a peer
        that sends nothing for so many seconds counts as gone. Empty lines are received by every link.
        """
        self._stream = stream
        self._encode = encode
        self._decode = decode
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self.silent_soon = False  #: the peer was so, and the link is down by that, not long after it began
        self._began = trio.current_time()
        self._received: list[bytes] = []  # complete lines, the next one last
        self._rest: list[bytes] = []  # of a line that is not complete yet
        self._rest_bytes = 0
        self._pending: list[bytes] = []
        self._more = trio.Event()
        self._flushed = trio.Event()
        self._flushed.set()

    def put(self, *messages: Sent) -> None:
        self.put_lines(*map(self._encode, messages))

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
            with trio.move_on_after(self._heartbeat_s):
                await self._more.wait()
            self._more = trio.Event()
            data, self._pending = b"".join(self._pending) or _HEARTBEAT, []
            # In pieces: a peer that reads slowly is none that does not read.
            for start in range(0, len(data), _CHUNK_BYTES):
                with trio.move_on_after(STALL_S) as patience:
                    await self._stream.send_all(data[start : start + _CHUNK_BYTES])
                if patience.cancelled_caught:
                    raise trio.BrokenResourceError("the peer does not read")
            if not self._pending:
                self._flushed.set()

    async def receive(self) -> Received | None:
        """The next message; None when the peer has gone, or is silent.

        Raises `InvalidRequest` for what is no message, `trio.BrokenResourceError`.
        """
        while True:
            while self._received:
                if line := self._received.pop():
                    return self._decode(line)
            data = b""
            with trio.move_on_after(self._silence_s) as patience:
                data = bytes(await self._stream.receive_some(_CHUNK_BYTES))
            if patience.cancelled_caught and trio.current_time() > patience.deadline + _LATE_S:
                continue  # this process has not listened: it was busy, or suspended
            if not data:
                soon = trio.current_time() < self._began + _SOON_S
                self.silent_soon = patience.cancelled_caught and soon
                return None
            *lines, rest = data.split(b"\n")
            if lines:
                lines[0] = b"".join([*self._rest, lines[0]])
                self._received, self._rest, self._rest_bytes = lines[::-1], [], 0
            self._rest.append(rest)
            self._rest_bytes += len(rest)
            if self._rest_bytes > LONGEST_LINE_BYTES:
                raise InvalidRequest(f"a line of more than {LONGEST_LINE_BYTES} bytes is no message")
