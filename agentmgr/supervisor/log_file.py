"""The log of one instance as a file of this machine, read while it is written and rotated."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from attrs import frozen

from . import log_window, logs
from .log_source import PIECE_BYTES, POLL_S, Line, Reached, Selection, Write, follow
from .log_window import LogMatches, LogWindow

T = TypeVar("T")

_MAX_SEARCH_BYTES = 256 * 2**20  #: that are read for the last lines, of one log
_MAX_LINE_BYTES = 2**20  #: a longer one comes in pieces

# Limiters of its own: a slow disk must not take the threads that others need. A search takes a while, and
# must not hold up what others read.
_threads, _reading, _searching = trio.CapacityLimiter(4), trio.CapacityLimiter(4), trio.CapacityLimiter(1)


@frozen
class Tail:
    """Some last lines."""

    lines: Sequence[Line]
    end: int  #: the position after the log's last line
    before: int | None  #: where to look for more of them; None: there are none


class LogFile:
    """The `LogSource` that is a file, with its rotated copies."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def last(self, wanted: Selection, most_bytes: int) -> tuple[Sequence[Line], int]:
        tail = await self.tail(wanted, most_bytes)
        return tail.lines, tail.end

    async def tail(self, wanted: Selection, most_bytes: int, before: int | None = None) -> Tail:
        """The last lines that are wanted, of those before a position."""
        return await _in_thread(partial(_last, self._path, wanted, most_bytes, before), _threads)

    async def window(
        self, limit: int, *, at: int | None = None, after: int | None = None, before: int | None = None
    ) -> LogWindow:
        read = partial(log_window.window, self._path, limit, at=at, after=after, before=before)
        return await _in_thread(read, _reading)

    async def search(self, text: str, limit: int, *, before: int | None = None) -> LogMatches:
        return await _in_thread(
            partial(log_window.search, self._path, text, limit, before=before), _searching
        )

    async def extent(self) -> tuple[int, int]:
        return await _in_thread(partial(log_window.extent, self._path), _reading)

    async def read(self, start: int, end: int) -> bytes:
        return await _in_thread(partial(log_window.read, self._path, start, end), _reading)

    def written_at(self) -> float | None:
        """When it was last written to, in seconds since 1970; None: it is not there."""
        return _state(self._path)[2] / 1e9 or None

    async def follow(self, write: Write, *, start: int) -> None:
        await follow(self.piece, write, start)

    async def piece(self, reached: Reached, wait_s: float) -> tuple[bytes, Reached]:
        """What comes after that, within so many seconds, and how far that is."""
        until, seen = trio.current_time() + wait_s, None
        while True:
            now = _state(self._path)
            if reached.inode is None:
                reached = Reached(reached.position, now[0])
            elif now[0] and now[0] != reached.inode:
                reached = Reached(None, now[0])  # rotated by another program: another file has the name
            if now != seen:  # else no thread is needed to see that nothing was written
                seen = now
                work = partial(_read, self._path, reached.position)
                data, position = await _in_thread(work, _threads)
                reached = Reached(position, reached.inode)
                if data:
                    return data, reached
            if trio.current_time() >= until:
                return b"", reached
            await trio.sleep(POLL_S)


async def _in_thread(work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    return await trio.to_thread.run_sync(work, limiter=limiter)


def _last(path: Path, wanted: Selection, most: int, before: int | None) -> Tail:
    try:
        with logs.still(path) as file:
            times, end = file.times(path), file.end
    except OSError:
        return Tail([], 0, None)
    floor = max(log_window.extent(path)[0], end - _MAX_SEARCH_BYTES)
    if wanted.since is not None:
        since = times.first_since(wanted.since.timestamp())
        floor = end if since is None else max(floor, since)
    found: list[Line] = []  # the newest first
    kept, start, rest = 0, end if before is None else min(before, end), b""
    while start > floor and kept < most and (wanted.lines is None or len(found) < wanted.lines):
        data = log_window.read(path, max(floor, start - PIECE_BYTES), start)
        if not data:  # it was rotated away meanwhile
            start, rest = floor, b""
            break
        start -= len(data)
        whole = data + rest
        first = 0 if start <= floor else whole.find(b"\n") + 1
        if not first and start > floor and len(whole) < _MAX_LINE_BYTES:  # it may begin further ahead
            rest = whole
            continue
        rest, position = whole[:first], start + len(whole)
        for line in reversed(whole[first:].splitlines(keepends=True)):
            position -= len(line)
            if wanted.has(line):
                found.append(Line(times.of(position), line))
                kept += len(line)
    more = start > floor
    if wanted.lines is not None:
        more = more and len(found) < wanted.lines
        del found[wanted.lines :]
    return Tail(found[::-1], end, start + len(rest) if more else None)


def _state(path: Path) -> tuple[int, ...]:
    """Its inode, length and time of the last write; zeros where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read(path: Path, offset: int | None) -> tuple[bytes, int | None]:
    """The bytes from `offset` on, and the offset after them."""
    try:
        with logs.still(path) as file:
            if offset is None or offset > file.end:  # it is another file, or was truncated
                offset = file.begin
            if offset < file.begin:
                offset, data = _from_copy(file, offset)
            else:
                data = file.read(offset, PIECE_BYTES)
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
            return offset, copy.read(PIECE_BYTES)
    except FileNotFoundError:  # no copies are kept
        return file.begin, b""
