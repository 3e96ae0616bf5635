"""The last bytes of a client, to be sent again when its instance has died: whole frames, as they came."""

from __future__ import annotations

from collections.abc import Iterator

from ..websocket.frames import CLOSE, PING, FrameTracker

TAIL_BYTES = 64 * 1024
"""Of one connection. An instance takes messages in at once; what it has not yet is little."""
_PART_BYTES = TAIL_BYTES // 4


class Tail:
    """`tracker` follows the same bytes, and is fed first.

    In two parts, of which the older one is dropped whole: nothing is looked at until it is asked for.
    """

    __slots__ = ("_before", "_before_new", "_lost", "_new", "_old", "_tracker")

    def __init__(self, tracker: FrameTracker) -> None:
        self._tracker = tracker
        self._old, self._new = bytearray(), bytearray()  # each begins with a message
        self._before = self._before_new = (0, 0)  # messages and pings that came before each
        self._lost = False  # too much has come of the present message

    def append(self, data: memoryview) -> None:
        if self._lost:
            self._begin_anew()
            return
        self._new += data
        if len(self._new) > _PART_BYTES:
            self._turn()

    def __len__(self) -> int:
        return len(self._old) + len(self._new)

    def after(self, messages: int, pings: int) -> bytes | None:
        """What came after so many messages, without so many pings; None where that is not known any more."""
        seen, pings_seen = self._before
        if self._lost or not seen <= messages <= self._tracker.messages:
            return None
        data, rest, end = self._old + self._new, bytearray(), 0
        for first, start, end in whole_frames(data):
            opcode = first & 0x0F
            if opcode == PING:
                pings_seen += 1
                wanted = pings_seen > pings
            else:
                wanted = seen >= messages
                seen += opcode < CLOSE and first >= 0x80
            if wanted:
                rest += data[start:end]
        return bytes(rest + data[end:])

    def _turn(self) -> None:
        tracker = self._tracker
        if len(self._new) > TAIL_BYTES:
            self._begin_anew()
        elif tracker.between_messages:
            self._old, self._new = self._new, bytearray()
            self._before, self._before_new = self._before_new, (tracker.messages, tracker.pings)
        if len(self) > TAIL_BYTES - _PART_BYTES:
            self._old, self._before = bytearray(), self._before_new

    def _begin_anew(self) -> None:
        tracker = self._tracker
        self._old, self._new = bytearray(), bytearray()
        self._before = self._before_new = (tracker.messages, tracker.pings)
        self._lost = not tracker.between_messages


def whole_frames(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """The first byte of each masked frame that is complete, where it begins and where it ends."""
    position, size = 0, len(data)
    while position + 6 <= size:
        length, payload = data[position + 1] & 0x7F, position + 6
        if length > 125:
            width = 2 if length == 126 else 8
            length = int.from_bytes(data[position + 2 : position + 2 + width], "big")
            payload += width
        if payload + length > size:
            return
        yield data[position], position, payload + length
        position = payload + length
