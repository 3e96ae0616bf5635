"""The stream under a WebSocket on the host's side."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio


class Wire(trio.abc.Stream):
    """What trio-websocket reads and writes, shared with a writer of whole text frames.

    A message through trio-websocket and wsproto costs some 60 µs. An agent's partial answers are small, many,
    and ready encoded; as no extension is ever negotiated, their frames are a header and the text, and several
    can go in one write. Pings, pongs, closes and everything that is read stay with trio-websocket.
    """

    def __init__(self, stream: trio.SocketStream, first: bytes, *, on_close: Callable[[], None]) -> None:
        self._stream = stream
        self._first = first  # was read already; it comes first
        self._lock = trio.StrictFIFOLock()
        self.on_close = on_close

    async def send_texts(self, texts: Iterable[bytes], *, while_open: Callable[[], bool]) -> None:
        """Sends each as one text frame; nothing if the WebSocket is closing by the time it is our turn.

        Raises `trio.BrokenResourceError`, `trio.ClosedResourceError`.
        """
        data = b"".join(part for text in texts for part in (_header(len(text)), text))
        async with self._lock:
            if while_open():
                await self._stream.send_all(data)

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
