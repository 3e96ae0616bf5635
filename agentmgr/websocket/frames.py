"""Where a WebSocket frame begins and ends. Sans-IO; looks at headers only and skips payloads.

The relay passes bytes on as they come. The tracker beside it follows the frames (RFC 6455 section 5.2), so
that the gateway can count messages, hold a size limit in constant memory, see the close frame that passes,
and put one in between two frames, which is the only place where that is legal.
"""

from __future__ import annotations

import os
import sys
from struct import Struct

from ..protocol import PROTOCOL_ERROR, TOO_BIG

CLOSE = 0x8  # below it are data frames; 0 continues a message
PING = 0x9
TEXT_MESSAGE, CLOSING, PONG = b"\x81", b"\x88", b"\x8a"  #: first bytes: FIN and the opcode

# RFC 6455 section 7.4 and IANA's registry: 1004 to 1006 and 1015 describe what happened and are never sent,
# those up to 2999 that are not here mean nothing yet.
SENDABLE = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})

_read_head = Struct("!BBH").unpack_from  # two bytes, and the length where it takes the next two
# The first byte of a frame that is a message by itself: text or binary, FIN, maybe compressed (RFC 7692).
_WHOLE = frozenset({0x81, 0x82, 0xC1, 0xC2})
# The size of a frame by its second byte, as far as that byte alone gives it.
_SMALL = (*range(2, 128), *[-1] * 130)
_SMALL_MASKED = (*[-1] * 128, *range(6, 132), -1, -1)


class FrameViolation(Exception):
    """This direction must end, with `code`. What was fed ends a frame after its first `safe` bytes."""

    def __init__(self, code: int, reason: str, safe: int) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.safe = safe


class FrameTracker:
    """Follows one direction. `masked`: frames must be masked, as those of a client.

    After a `FrameViolation` the tracker is of no further use.
    """

    __slots__ = (
        "_close_payload", "_header", "_left", "_masked", "_medium", "_medium_head", "_message_bytes", "_most",
        "_opcode", "_small", "close_code", "close_reason", "closed", "controls", "data_frames",
        "max_message_bytes", "messages", "partial", "pings",
    )  # fmt: skip

    def __init__(self, *, masked: bool, max_message_bytes: int = 0) -> None:
        self.max_message_bytes = max_message_bytes  #: 0: no limit
        self.messages = 0  #: complete ones
        self.data_frames = 0  #: begun
        self.controls = 0  #: complete frames that are no part of a message
        self.pings = 0  #: among them
        self.partial = 0  #: bytes of the unfinished frame that were fed so far; 0 between two frames
        self.closed = False  #: a whole close frame went by
        self.close_code: int | None = None
        self.close_reason = ""
        self._masked = masked
        self._small = _SMALL_MASKED if masked else _SMALL
        self._medium = 0xFE if masked else 0x7E  # the second byte of a frame with a length of 16 bits
        self._medium_head = 8 if masked else 4
        self._most = max_message_bytes or sys.maxsize
        self._message_bytes = 0
        self._header = b""  # of a frame whose header is not complete
        self._left = 0  # payload bytes of the present frame still to come
        self._opcode = 0  # of the present frame, with the FIN bit
        self._close_payload = b""

    @property
    def between_messages(self) -> bool:
        return not (self.partial or self._message_bytes)

    def is_message(self, buffer: bytearray, size: int) -> bool:
        """Are the first `size` bytes one whole message? Then they are counted, else they are for `feed`.

        Nearly all traffic is whole messages, which this counts at a quarter of the cost. The buffer has four
        bytes at least, whatever `size` is.
        """
        first, second, length = _read_head(buffer)
        whole = length + self._medium_head if second == self._medium else self._small[second]
        if whole != size or self.partial or first not in _WHOLE or size > self._most:
            return False
        self.messages += 1
        self.data_frames += 1
        self._message_bytes = 0
        return True

    def feed(self, data: bytes | memoryview) -> None:
        """Follows some more bytes. Raises `FrameViolation`."""
        size = len(data)
        position = 0
        while position < size:
            if self._left:
                taken = min(self._left, size - position)
                if self._opcode & 0x0F == CLOSE and len(self._close_payload) < 129:
                    self._close_payload += bytes(data[position : position + min(taken, 125)])
                position += taken
                self._left -= taken
                self.partial += taken
                if not self._left:
                    self._finish()
                continue
            position = self._begin(data, position, size)

    def _begin(self, data: bytes | memoryview, position: int, size: int) -> int:
        """Reads a frame's header as far as it is there; the position behind what was read."""
        start = position - len(self._header)  # negative when the header began in an earlier chunk
        if self._header:
            # Rare, so the simple way: take what a header can have at most, and give back what is too much.
            header: bytes | memoryview = self._header + bytes(data[position : position + 14])
            base = 0
        else:
            header, base = data, position
        have = len(header) - base
        length = header[base + 1] & 0x7F if have > 1 else 0
        need = 2 + (0 if length < 126 else 2 if length == 126 else 8)
        if have < need:
            return self._keep(header, base, start, size)
        first, second = header[base], header[base + 1]
        if length > 125:
            length = int.from_bytes(header[base + 2 : base + need], "big")
        masked = second & 0x80
        if masked:
            need += 4
        if self._masked and not masked:
            raise self._violation(PROTOCOL_ERROR, "a client must mask its frames", start)
        if length >> 63:
            raise self._violation(PROTOCOL_ERROR, "a length must not have its highest bit set", start)
        opcode = first & 0x0F
        if opcode < 8:
            total = length if opcode else self._message_bytes + length
            if self.max_message_bytes and total > self.max_message_bytes:
                raise self._violation(TOO_BIG, f"a message is over {self.max_message_bytes} bytes", start)
        if have < need:
            return self._keep(header, base, start, size)
        if opcode < 8:
            self.data_frames += 1
            self._message_bytes = total
        elif opcode == CLOSE:
            # The mask key is kept in front: it is needed to read the code.
            self._close_payload = bytes(header[base + need - 4 : base + need]) if masked else bytes(4)
        self._header = b""
        self._opcode = first & 0x8F
        self._left = length
        self.partial = need
        if not length:
            self._finish()
        return start + need

    def _violation(self, code: int, reason: str, start: int) -> FrameViolation:
        self.partial = max(0, -start)  # what of the offending frame is on its way already
        return FrameViolation(code, reason, max(0, start))

    def _keep(self, header: bytes | memoryview, base: int, start: int, size: int) -> int:
        self._header = bytes(header[base:])
        self.partial = size - start
        return size

    def _finish(self) -> None:
        self.partial = 0
        opcode = self._opcode & 0x0F
        if opcode < 8:
            if self._opcode & 0x80:
                self.messages += 1
                self._message_bytes = 0
            return
        self.controls += 1
        if opcode == PING:
            self.pings += 1
        elif opcode == CLOSE and not self.closed:
            self.closed = True
            mask, payload = self._close_payload[:4], self._close_payload[4:]
            plain = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
            if len(plain) >= 2:
                self.close_code = int.from_bytes(plain[:2], "big")
                self.close_reason = plain[2:].decode("utf-8", "replace")


class OpaqueBytes(FrameTracker):
    """In the place of a tracker where the frames are another one's business."""

    __slots__ = ()

    def is_message(self, buffer: bytearray, size: int) -> bool:
        return size > 0

    def feed(self, data: bytes | memoryview) -> None:
        pass


def frame_head(first: bytes, length: int) -> bytes:
    """The header of a frame that is not masked, as those of a server; `first` is its first byte."""
    if length < 126:
        return first + bytes((length,))
    if length < 2**16:
        return first + b"\x7e" + length.to_bytes(2, "big")
    return first + b"\x7f" + length.to_bytes(8, "big")


def close_frame(code: int, reason: str = "", *, masked: bool) -> bytes:
    """A whole close frame. Raises `ValueError` for a code that must not be sent."""
    if code not in SENDABLE:
        raise ValueError(f"{code} is not a close code that can be sent")
    text = reason.encode()[:123]  # a control frame has 125 bytes at most
    payload = code.to_bytes(2, "big") + text.decode("utf-8", "ignore").encode()
    if not masked:
        return frame_head(CLOSING, len(payload)) + payload
    key = os.urandom(4)  # RFC 6455 section 5.3: unpredictable, so that no cache can be poisoned
    body = bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    return CLOSING + bytes((0x80 | len(payload),)) + key + body
