"""Reading logs that others write: their last lines, and what comes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import trio

MAX_LINES = 100_000
_MAX_TAIL_BYTES = 16 * 2**20
_CHUNK_BYTES = 64 * 1024

# Files of their own limiter: a slow disk must not take the threads that others need.
_threads = trio.CapacityLimiter(4)

POLL_S = 0.2
"""How often a followed file is looked at. Linux could tell by inotify, which Python has no interface to; and
a stat costs a few microseconds."""


Write = Callable[[bytes], Awaitable[None]]


async def show(files: Mapping[int, Path], write: Write, *, lines: int, following: bool) -> None:
    """The last lines of the logs of some instances and, if `following`, what comes; until cancelled then.

    Where there are several, each line begins with its instance's number.
    """
    async with trio.open_nursery() as nursery:
        for number, path in files.items():
            mark = f"[{number}] ".encode() if len(files) > 1 else b""
            nursery.start_soon(_show, path, _marking(mark, write), lines, following)


def _marking(mark: bytes, write: Write) -> Write:
    async def marked(text: bytes) -> None:
        await write(b"".join(mark + line for line in text.splitlines(keepends=True)) if mark else text)

    return marked


async def _show(path: Path, write: Write, lines: int, following: bool) -> None:
    last, end = await tail(path, lines)
    if last:
        await write(last)
    if following:
        await follow(path, write, start=end)


async def tail(path: Path, lines: int) -> tuple[bytes, int]:
    """The last whole lines of the file, and where they end. A file that is not there is empty."""
    return await trio.to_thread.run_sync(_tail, path, lines, limiter=_threads)


def _tail(path: Path, lines: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start, kept = end, b""
            # One newline more than lines: that before the first.
            while start > 0 and kept.count(b"\n") <= lines and end - start < _MAX_TAIL_BYTES:
                size = min(_CHUNK_BYTES, start)
                start -= size
                file.seek(start)
                kept = file.read(size) + kept
    except OSError:
        return b"", 0
    return b"".join(kept.splitlines(keepends=True)[-lines:] if lines else []), end


async def follow(path: Path, write: Write, *, start: int) -> None:
    """Passes on what is appended after `start`, until cancelled; also over a rotation.

    `write` gets whole lines, except for a last one that stays unfinished for a while.
    """
    position, inode, rest = start, _inode(path), b""
    while True:
        now = _inode(path)
        if now is not None and now != inode:  # rotated: another file has the name
            position, inode, rest = 0, now, b""
        data, position = await trio.to_thread.run_sync(_read, path, position, limiter=_threads)
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


def _read(path: Path, position: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < position:  # truncated in place
                position = 0
            file.seek(position)
            data = file.read(_CHUNK_BYTES)
    except OSError:
        return b"", position
    return data, position + len(data)
