"""Being told when files are written to: inotify(7), which Python has no interface to."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import trio

_libc = ctypes.CDLL(None, use_errno=True)
_IN_MODIFY = 0x02
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name: of a watched file there is none
_BUFFER_BYTES = 4096 * _EVENT.size

NOWHERE = -1


class Writes:
    """Told between `open` and `close`; where the kernel has no more of this to give, of nothing."""

    def __init__(self) -> None:
        self._descriptor = NOWHERE

    def open(self) -> None:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        if self._descriptor != NOWHERE:
            os.close(self._descriptor)
            self._descriptor = NOWHERE

    def watch(self, file: Path) -> int:
        """A mark that `wait` tells it by: the same one for the same file. `NOWHERE`: it is not watched."""
        return int(_libc.inotify_add_watch(self._descriptor, os.fsencode(file), _IN_MODIFY))

    def forget(self, mark: int) -> None:
        _libc.inotify_rm_watch(self._descriptor, mark)

    async def wait(self) -> set[int]:
        """The marks of what was written to since the last call, however often."""
        if self._descriptor == NOWHERE:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(self._descriptor)
        events = os.read(self._descriptor, _BUFFER_BYTES)
        return {mark for mark, *_ in _EVENT.iter_unpack(events)}
