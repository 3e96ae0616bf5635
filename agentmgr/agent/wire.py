"""The stream under a WebSocket on the host's side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress

import trio


def _nothing() -> None:
    """Nobody needs to know."""


class Wire(trio.abc.Stream):
    """What trio-websocket reads and writes, shared with a writer of whole text frames.

    A message through trio-websocket and wsproto costs some 60 µs. An agent's partial answers are small, many,
    and ready encoded; as no extension is ever negotiated, their frames are a header and the text, and several
    can go in one write. Pings, pongs, closes and everything that is read stay with trio-websocket.
    """

    def __init__(self, stream: trio.SocketStream, first: bytes, *, on_close: Callable[[], None]) -> None:
        self._stream = stream
        # In tests the stream may have no socket. (Asked here, because it costs as much as a send.)
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._first = first  # was read already; it comes first
        self._lock = trio.StrictFIFOLock()
        self.on_close = on_close

    async def send_texts(
        self,
        texts: Iterable[bytes],
        *,
        while_open: Callable[[], bool],
        before_waiting: Callable[[], None] = _nothing,
    ) -> None:
        """Sends each as one text frame; nothing if the WebSocket is closing by the time it is our turn.

        What the kernel takes at once, which is nearly always all, goes without a checkpoint: a trip through
        trio's loop costs more than such a message. `before_waiting` is called where there is one.
        Raises `trio.BrokenResourceError`, `trio.ClosedResourceError`.
        """
        data = b"".join(part for text in texts for part in (_header(len(text)), text))
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            before_waiting()
            await self._lock.acquire()
        try:
            if while_open() and (rest := self._send_now(data)):
                before_waiting()
                await self._stream.send_all(rest)
        finally:
            self._lock.release()

    def _send_now(self, data: bytes) -> memoryview:
        """Sends what there is room for; the rest. An error is left for the stream to meet and translate."""
        sent = 0
        if self._socket is not None:
            with suppress(OSError):
                sent = os.write(self._socket.fileno(), data)
        return memoryview(data)[sent:]

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._first:
            await trio.lowlevel.checkpoint()
            data, self._first = self._first, b""
            return data
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._lock:
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.on_close()
        await self._stream.aclose()


def _header(length: int) -> bytes:
    """Of a whole text frame from a server, which is not masked (RFC 6455, section 5.2)."""
    if length < 126:
        return bytes((0x81, length))
    if length < 2**16:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")
