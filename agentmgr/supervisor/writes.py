"""Which files are written to, by inotify(7), which the standard library does not wrap."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

import trio

_libc = ctypes.CDLL(None, use_errno=True)
_IN_MODIFY = 0x02
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name: 0, as no directory is watched
_BUFFER_BYTES = 4096 * _EVENT.size

NOWHERE = -1  #: no descriptor, or no mark: what the calls return when they fail


class Writes:
    """Best effort: if the kernel grants no more watches, `wait` does not report those files."""

    def __init__(self) -> None:
        self._descriptor = NOWHERE

    def open(self) -> None:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        if self._descriptor != NOWHERE:
            os.close(self._descriptor)
            self._descriptor = NOWHERE

    def watch(self, file: Path) -> int:
        """The mark by which `wait` names the file, the same each time; `NOWHERE` when it is not watched."""
        return int(_libc.inotify_add_watch(self._descriptor, os.fsencode(file), _IN_MODIFY))

    def forget(self, mark: int) -> None:
        _libc.inotify_rm_watch(self._descriptor, mark)

    async def wait(self) -> set[int]:
        """Waits for a write; returns the marks of the files that were written to since the last call."""
        if self._descriptor == NOWHERE:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(self._descriptor)
        events = os.read(self._descriptor, _BUFFER_BYTES)
        return {mark for mark, *_ in _EVENT.iter_unpack(events)}
