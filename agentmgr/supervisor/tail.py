"""Reading logs while they are written: the last lines, then new ones."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import trio

from . import logs

MAX_LINES = 100_000
_MAX_TAIL_BYTES = 16 * 2**20
_CHUNK_BYTES = 64 * 1024

# A limiter of its own: a slow disk must not take the threads that others need.
_threads = trio.CapacityLimiter(4)

POLL_S = 0.2
"""How often a followed file is looked at: a stat costs microseconds, and inotify is scarce, 128 per user."""


Write = Callable[[bytes], Awaitable[None]]


async def show(
    files: Mapping[int, Path], write: Write, *, lines: int, following: bool, since: int | None = None
) -> None:
    """Writes the last lines of the instances' logs and, if `following`, new ones until cancelled.

    `since`: the position (`log_window`) to begin at, in place of some lines before the end.

    With several instances, each line begins with the instance's number. Their last lines are not merged: no
    log records when a line was written.
    """
    async with trio.open_nursery() as nursery:
        for number, path in files.items():
            marked = _marking(f"[{number}] ".encode() if len(files) > 1 else b"", write)
            last, end = await tail(path, lines) if since is None else (b"", since)
            if last:
                await marked(last)
            if following:
                nursery.start_soon(partial(follow, path, marked, start=end))


def _marking(mark: bytes, write: Write) -> Write:
    async def marked(text: bytes) -> None:
        await write(b"".join(mark + line for line in text.splitlines(keepends=True)) if mark else text)

    return marked


async def tail(path: Path, lines: int) -> tuple[bytes, int]:
    """The last whole lines of the file, and the offset where they end; nothing of an absent file."""
    return await trio.to_thread.run_sync(_tail, path, lines, limiter=_threads)


def _tail(path: Path, lines: int) -> tuple[bytes, int]:
    try:
        with logs.still(path) as file:
            end = start = file.end
            kept = b""
            # One newline more than lines: that before the first.
            while start > file.begin and kept.count(b"\n") <= lines and end - start < _MAX_TAIL_BYTES:
                size = min(_CHUNK_BYTES, start - file.begin)
                start -= size
                kept = file.read(start, size) + kept
    except OSError:
        return b"", 0
    return b"".join(kept.splitlines(keepends=True)[-lines:] if lines else []), end


async def follow(path: Path, write: Write, *, start: int) -> None:
    """Writes what is appended after the offset `start`, across rotations, until cancelled.

    `write` gets whole lines, except for a last one that stays unfinished for a while.
    """
    offset: int | None = start
    inode, rest = _inode(path), b""
    while True:
        now = _inode(path)
        if now is not None and now != inode:  # rotated by another program: another file has the name
            offset, inode, rest = None, now, b""
        data, offset = await trio.to_thread.run_sync(_read, path, offset, limiter=_threads)
        if data:
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                await write(whole + newline)
            if len(rest) > _CHUNK_BYTES:  # never a newline
                await write(rest)
                rest = b""
        elif rest:
            await write(rest)
            rest = b""
        if len(data) < _CHUNK_BYTES:
            await trio.sleep(POLL_S)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _read(path: Path, offset: int | None) -> tuple[bytes, int | None]:
    """The bytes from `offset` on, and the offset after them."""
    try:
        with logs.still(path) as file:
            if offset is None or offset > file.end:  # it is another file, or was truncated
                offset = file.begin
            if offset < file.begin:
                offset, data = _from_copy(file, offset)
            else:
                data = file.read(offset, _CHUNK_BYTES)
    except OSError:
        return b"", offset
    return data, offset + len(data)


def _from_copy(file: logs.Still, offset: int) -> tuple[int, bytes]:
    """The bytes that were cut off the live file since the last read, as far as the newest copy has them."""
    try:
        with logs.open_to_read(file.copy) as copy:
            length = copy.seek(0, os.SEEK_END)
            offset = max(offset, file.begin - length)
            copy.seek(length - (file.begin - offset))
            return offset, copy.read(_CHUNK_BYTES)
    except FileNotFoundError:  # no copies are kept
        return file.begin, b""
