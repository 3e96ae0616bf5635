"""The last bytes of a client, to be sent again when its instance has died: whole frames, as they came."""

from __future__ import annotations

from collections.abc import Iterator

from ..websocket.frames import CLOSE, PING, FrameTracker

TAIL_BYTES = 64 * 1024
"""Of one connection. An instance takes messages in at once; what it has not yet is little."""


class Tail:
    """`tracker` follows the same bytes, and is fed first."""

    __slots__ = ("_data", "_lost", "_messages", "_pings", "_tracker")

    def __init__(self, tracker: FrameTracker) -> None:
        self._tracker = tracker
        self._data = bytearray()
        self._messages = self._pings = 0  # that came before what is kept
        self._lost = False  # of the present message, too much has come

    def append(self, data: memoryview) -> None:
        if self._lost:
            self._begin_anew()
            return
        self._data += data
        if len(self._data) > TAIL_BYTES:
            self._trim()

    def __len__(self) -> int:
        return len(self._data)

    def after(self, messages: int, pings: int) -> bytes | None:
        """What came after so many messages, without so many pings; None where that is not known any more."""
        if self._lost or not self._messages <= messages <= self._tracker.messages:
            return None
        data, rest = self._data, bytearray()
        seen, pings_seen, end = self._messages, self._pings, 0
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

    def _trim(self) -> None:
        """Forgets whole messages, and half of all, so that it is seldom done."""
        cut, cut_messages, cut_pings = 0, self._messages, self._pings
        messages, pings = cut_messages, cut_pings
        inside = False  # a message of several frames
        for first, _, end in whole_frames(self._data):
            opcode = first & 0x0F
            pings += opcode == PING
            if opcode < CLOSE:
                inside = first < 0x80
                messages += not inside
            if not inside:
                cut, cut_messages, cut_pings = end, messages, pings
                if len(self._data) - end <= TAIL_BYTES // 2:
                    break
        del self._data[:cut]
        self._messages, self._pings = cut_messages, cut_pings
        if len(self._data) > TAIL_BYTES:
            self._data.clear()
            self._lost = True
            self._begin_anew()

    def _begin_anew(self) -> None:
        tracker = self._tracker
        if tracker.between_messages:
            self._messages, self._pings, self._lost = tracker.messages, tracker.pings, False


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
