"""The stream under a WebSocket on the host's side."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import trio
from trio_websocket import CloseReason

from ..protocol import BAD_TEXT, PROTOCOL_ERROR
from ..websocket.frames import CLOSING, PONG, TEXT_MESSAGE, close_frame, frame_head
from .link_log import Pong

FAREWELL_S = 2.0  #: for a client that broke the protocol to hear so
_PEERS_FAULT = (PROTOCOL_ERROR, BAD_TEXT)
_MOST_DISCARDED = 16 * 1024 * 1024


def _nothing() -> None:
    """The default of a callback."""


class LinkStream(trio.abc.Stream):
    """What trio-websocket reads and writes, shared with a writer of whole text frames.

    A message through trio-websocket and wsproto costs some 60 µs. An agent's partial answers are small, many,
    and ready encoded; as no extension is ever negotiated, their frames are a header and the text, and several
    can go in one write. Pings, pongs, closes and everything that is read stay with trio-websocket.

    Except one close: trio-websocket drops a connection whose peer breaks the protocol without a word, so the
    Close frame that says what was wrong (RFC 6455, section 7.1.7) is sent here.
    """

    def __init__(
        self, stream: trio.SocketStream, head: bytes, rest: bytes = b"", *, on_close: Callable[[], None]
    ) -> None:
        """`head` and `rest`, the request and what came behind it, were read already."""
        self._stream = stream
        # In tests the stream may have no socket. (Asked here, because it costs as much as a send.)
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._head, self._rest = head, rest
        self._accepted = trio.Event()
        self._lock = trio.StrictFIFOLock()
        self._on_close = on_close
        self._verdict: Callable[[], CloseReason | None] = lambda: None
        self._said_close = False
        self.send_pong: Callable[[Pong], Awaitable[None]] | None = None
        """Where pongs go that trio-websocket would send; None: to the peer at once."""

    def accepted(self, verdict: Callable[[], CloseReason | None]) -> None:
        """The handshake is done. `verdict`: how the WebSocket has ended; None while it has not."""
        self._on_close, self._verdict = _nothing, verdict
        self._accepted.set()

    async def send_texts(
        self,
        texts: Iterable[bytes],
        *,
        while_open: Callable[[], bool],
        before_waiting: Callable[[], None] = _nothing,
    ) -> None:
        """Sends each as one text frame, or as a pong; nothing if the WebSocket is closing by our turn.

        What the kernel takes at once, which is nearly always all, goes without a checkpoint: a trip through
        trio's loop costs more than such a message. `before_waiting` is called where there is one.
        Raises `trio.BrokenResourceError`, `trio.ClosedResourceError`.
        """
        data = b"".join(
            part
            for text in texts
            for part in (frame_head(PONG if type(text) is Pong else TEXT_MESSAGE, len(text)), text)
        )
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
        if self._head:
            await trio.lowlevel.checkpoint()
            data, self._head = self._head, b""
            return data
        if self._rest:  # trio-websocket would leave it lying until something comes behind it
            await self._accepted.wait()
            data, self._rest = self._rest, b""
            return data
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.send_pong is not None and data[:1] == PONG:
            await self.send_pong(Pong(data[2:]))
            return
        async with self._lock:
            self._said_close = self._said_close or data[:1] == CLOSING
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._on_close()
        verdict = self._verdict()
        if verdict is not None and verdict.code in _PEERS_FAULT and not self._said_close:
            # Shielded: the connection's own task, which waits for nothing here, is about to cancel this one.
            with trio.move_on_after(FAREWELL_S, shield=True), suppress(trio.BrokenResourceError):
                await self._accuse(verdict)
        await self._stream.aclose()

    async def _accuse(self, verdict: CloseReason) -> None:
        await self.send_all(close_frame(verdict.code, verdict.reason or "", masked=False))
        await part(self._stream)


async def part(stream: trio.SocketStream) -> None:
    """Ends the stream and reads until the peer does.

    To close it with unread data would be a reset, which may overtake what was sent last.
    """
    await stream.send_eof()
    discarded = 0
    while discarded < _MOST_DISCARDED and (data := await stream.receive_some()):
        discarded += len(data)
