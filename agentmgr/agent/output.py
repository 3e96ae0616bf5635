"""Drops an agent's output while its disk is full, so that a `print` does not break off a turn."""

from __future__ import annotations

import errno
import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class _Forgiving(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
        return size


def print_what_has_room() -> None:
    """Makes stdout and stderr ignore a full disk, and unbuffered, so that a crash loses no output."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:
            stream.flush()
            raw = _Forgiving(stream.fileno(), "wb", closefd=False)
            text = io.TextIOWrapper(raw, stream.encoding, stream.errors, write_through=True)
            setattr(sys, name, text)
