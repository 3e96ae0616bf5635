"""Reading logs while they are written: the last lines, of several logs by time, then new ones."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from attrs import frozen

from . import log_window, logs

T = TypeVar("T")

MAX_LINES = 100_000
_MAX_TAIL_BYTES = 16 * 2**20  #: of one log
_MAX_TAILS_BYTES = 64 * 2**20  #: of several
_MAX_SEARCH_BYTES = 256 * 2**20  #: that are read for them, of one log
_MAX_LINE_BYTES = 2**20  #: a longer one comes in pieces
_LINES_AT_ONCE = 1000
_CHUNK_BYTES = 64 * 1024

# A limiter of its own: a slow disk must not take the threads that others need.
_threads = trio.CapacityLimiter(4)

POLL_S = 0.2
"""How often a followed file is looked at: a stat costs microseconds, and inotify is scarce, 128 per user."""


Write = Callable[[bytes], Awaitable[None]]


@frozen
class Selection:
    """Which lines of a log are shown, and how."""

    lines: int | None = 100  #: so many of the last; None: all
    since: datetime | None = None  #: written then or later, as far as that is known
    grep: Callable[[str], bool] | None = None  #: only lines for which it is true
    timestamps: bool = False  #: each line begins with its time
    position: int | None = None  #: (`log_window`) to begin at, in place of some lines before the end


@frozen
class _Line:
    at: float | None  #: seconds since 1970
    data: bytes


def log_label(service: str, slot: int, count: int) -> str:
    """Of an instance among several services."""
    return service if count == 1 else f"{service} {slot}"


async def show(files: Mapping[str, Path], write: Write, wanted: Selection, *, following: bool) -> None:
    """Writes the last lines of the logs in the order of time and, if `following`, new ones until cancelled.

    With several logs, each line begins with its log's key.
    """
    ends: dict[str, int] = {}
    found: list[tuple[str, _Line]] = []
    most = _MAX_TAIL_BYTES if len(files) == 1 else max(_MAX_TAILS_BYTES // max(1, len(files)), _CHUNK_BYTES)
    for key, path in files.items():
        if wanted.position is None:
            lines, ends[key] = await _in_thread(_last, path, wanted, most)
            found += [(key, line) for line in lines]
        else:
            ends[key] = wanted.position
    if len(files) > 1:  # what has no time is the oldest; lines of one time stay as they stand in their log
        found.sort(key=lambda item: item[1].at or 0)
    marks = {key: f"[{key}] ".encode() if len(files) > 1 else b"" for key in files}
    for some in _batched(found, _LINES_AT_ONCE):
        await write(b"".join(_shown(line, marks[key], wanted) for key, line in some))
    if not following:
        return
    async with trio.open_nursery() as nursery:
        for key, path in files.items():
            marked = partial(_write_new, write, marks[key], wanted)
            nursery.start_soon(partial(follow, path, marked, start=ends[key]))


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


async def _write_new(write: Write, mark: bytes, wanted: Selection, text: bytes) -> None:
    at = time.time()
    lines = (_Line(at, line) for line in text.splitlines(keepends=True) if _matches(line, wanted))
    if shown := b"".join(_shown(line, mark, wanted) for line in lines):
        await write(shown)


def _shown(line: _Line, mark: bytes, wanted: Selection) -> bytes:
    """With nothing before a line, it is left as it is, also where it is not finished yet."""
    stamp = _stamp(line.at) if wanted.timestamps else b""
    end = b"" if line.data.endswith(b"\n") or not (mark or stamp) else b"\n"
    return stamp + mark + line.data + end


def _stamp(at: float | None) -> bytes:
    if at is None:
        return b"-".ljust(25)
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3].encode() + b"Z "


def _matches(line: bytes, wanted: Selection) -> bool:
    return wanted.grep is None or wanted.grep(line.rstrip(b"\r\n").decode(errors="replace"))


async def tail(path: Path, lines: int) -> tuple[bytes, int]:
    """The last lines of the file, and the offset where they end; nothing of an absent file."""
    found, end = await _in_thread(_last, path, Selection(lines), _MAX_TAIL_BYTES)
    return b"".join(line.data for line in found), end


async def _in_thread(work: Callable[..., T], *args: Any) -> T:
    return await trio.to_thread.run_sync(work, *args, limiter=_threads)


def _last(path: Path, wanted: Selection, most: int) -> tuple[list[_Line], int]:
    """The lines of one log that are wanted, `most` bytes of them, and the position after the last one."""
    try:
        with logs.still(path) as file:
            times, end = file.times(path), file.end
    except OSError:
        return [], 0
    floor = max(log_window.extent(path)[0], end - _MAX_SEARCH_BYTES)
    if wanted.since is not None:
        since = times.first_since(wanted.since.timestamp())
        floor = end if since is None else max(floor, since)
    found: list[_Line] = []  # the newest first
    kept, start, rest = 0, end, b""
    while start > floor and kept < most and (wanted.lines is None or len(found) < wanted.lines):
        data = log_window.read(path, max(floor, start - _CHUNK_BYTES), start)
        if not data:  # it was rotated away meanwhile
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
            if _matches(line, wanted):
                found.append(_Line(times.of(position), line))
                kept += len(line)
    if wanted.lines is not None:
        del found[wanted.lines :]
    return found[::-1], end


async def follow(path: Path, write: Write, *, start: int) -> None:
    """Writes what is appended after the offset `start`, across rotations, until cancelled.

    `write` gets whole lines, except for a last one that stays unfinished for a while.
    """
    offset: int | None = start
    (inode, *_), rest = _state(path), b""
    seen: tuple[int, ...] | None = None  #: its state when all of it was read
    while True:
        now = _state(path)
        if now == seen and not rest:  # no thread is needed to see that nothing was written
            await trio.sleep(POLL_S)
            continue
        if now[0] and now[0] != inode:  # rotated by another program: another file has the name
            offset, inode, rest = None, now[0], b""
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
            seen = now
            await trio.sleep(POLL_S)


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
