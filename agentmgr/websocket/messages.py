"""A client's own half of a WebSocket after its handshake: masks what it says, and reads what it is sent.

Sans-IO, for a client within this process (`fronts.door`): its peer is a gateway that passes on what a service
sends, so that all is judged that a reader could stumble over, and nothing is bounded by another reader.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ..protocol import PROTOCOL_ERROR, TOO_BIG
from .frames import CLOSE, TEXT_MESSAGE, FrameViolation

_CONTINUATION, _FIN = 0x0, 0x80


_PIECE_BYTES = 64 * 1024  # half a millisecond of masking


def masked_frame(payload: bytes, first: bytes = TEXT_MESSAGE) -> bytes:
    """A whole frame of a client; `first` is its first byte."""
    return b"".join(masked_pieces(payload, first))


def masked_pieces(payload: bytes, first: bytes = TEXT_MESSAGE) -> Iterator[bytes]:
    """The same, so that a large one can be made while it is sent."""
    size = len(payload)
    if size < 126:
        head = first + bytes((0x80 | size,))
    elif size < 2**16:
        head = first + b"\xfe" + size.to_bytes(2, "big")
    else:
        head = first + b"\xff" + size.to_bytes(8, "big")
    key = os.urandom(4)  # RFC 6455 section 5.3
    yield head + key + _masked(payload[:_PIECE_BYTES], key)
    for start in range(_PIECE_BYTES, size, _PIECE_BYTES):
        yield _masked(payload[start : start + _PIECE_BYTES], key)


def _masked(data: bytes, key: bytes) -> bytes:
    size = len(data)
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")


class MessageReader:
    """Collects the frames of a server into whole messages."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._parts: list[bytes] = []  # of a message that goes on
        self._opcode = 0

    def feed(self, data: bytes) -> Iterable[tuple[int, bytes]]:
        """The opcode and the payload of each message, and of each control frame, that is complete now.

        Raises `FrameViolation`, perhaps while they are taken; the reader is of no further use then.
        """
        # Nearly always it is one whole message of some hundred bytes.
        if not self._data and not self._parts and data[:1] == TEXT_MESSAGE and len(data) <= self._max_bytes:
            if 1 < len(data) < 128 and data[1] == len(data) - 2:
                return ((data[0] & 0x0F, data[2:]),)
            if data[1:2] == b"\x7e" and int.from_bytes(data[2:4], "big") == len(data) - 4:
                return ((data[0] & 0x0F, data[4:]),)
        return self._frames(data)

    def _frames(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self._data += data
        position = 0
        try:
            while (found := self._next(position)) is not None:
                first, payload, position = found
                opcode = first & 0x0F
                if opcode >= CLOSE:
                    yield opcode, payload
                    continue
                if (opcode == _CONTINUATION) is not bool(self._opcode):
                    raise FrameViolation(PROTOCOL_ERROR, "a message begins or goes on out of turn", 0)
                self._parts.append(payload)
                self._opcode = self._opcode or opcode
                if sum(map(len, self._parts)) > self._max_bytes:
                    raise FrameViolation(TOO_BIG, f"a message is over {self._max_bytes} bytes", 0)
                if first & _FIN:
                    message, opcode = b"".join(self._parts), self._opcode
                    self._parts, self._opcode = [], 0
                    yield opcode, message
        finally:
            del self._data[:position]

    def _next(self, position: int) -> tuple[int, bytes, int] | None:
        """The first byte and the payload of the frame that begins there, and where the next one does."""
        data = self._data
        if len(data) < position + 2:
            return None
        first, size = data[position], data[position + 1]
        start = position + 2
        if size > 125:
            width = 2 if size == 126 else 8
            if len(data) < start + width:
                return None
            size = int.from_bytes(data[start : start + width], "big")
            start += width
        if first & 0x70 or data[position + 1] & 0x80:
            raise FrameViolation(PROTOCOL_ERROR, "a server masks no frame, and agreed to no extension", 0)
        if size > self._max_bytes:
            raise FrameViolation(TOO_BIG, f"a message is over {self._max_bytes} bytes", 0)
        if len(data) < start + size:
            return None
        return first, bytes(data[start : start + size]), start + size
