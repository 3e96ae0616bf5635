"""The gateway's end of a door's socket pair: what is sent goes to the door in memory while that keeps up.

So the door waits for no descriptor, which is a third of what an event costs behind the relay.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MOST_BYTES = 64 * 1024  # in memory; what is more waits in the kernel, and then the sender does


class Feed(socket.socket):
    """A socket to whoever sends. What is received is in memory, or in the kernel behind that, never both ways
    round: memory is used again when the kernel has been emptied.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._in_kernel = True  # the handshake is
        self._came = trio.Event()

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        if self._in_kernel or self._size > _MOST_BYTES:
            self._in_kernel = True
            return super().send(data, flags)
        chunk = bytes(data)
        self._chunks.append(chunk)
        self._size += len(chunk)
        self._came.set()
        return len(chunk)

    def shutdown(self, how: int, /) -> None:
        super().shutdown(how)
        self.end()

    def close(self) -> None:
        super().close()
        self.end()

    def end(self) -> None:
        """From now on all goes through the kernel: the end of the stream, or what no door reads any more."""
        self._in_kernel = True
        self._came.set()

    async def receive(self, other: socket.socket, max_bytes: int) -> bytes:
        """What was sent, given the door's own end; `b""` at the end of the stream. Raises `OSError`."""
        while True:
            if self._chunks:
                self._size = 0
                data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                return data
            if self._in_kernel:
                try:
                    return other.recv(max_bytes)
                except BlockingIOError:
                    self._in_kernel = False
            self._came = trio.Event()
            await self._came.wait()
