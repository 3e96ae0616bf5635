"""Showing logs: the last lines, of several logs by time, then new ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import trio

from ..errors import AgentManagerError
from .log_source import Line, LogSource, Selection, Write

T = TypeVar("T")

MAX_LINES = 100_000
_MAX_TAIL_BYTES = 16 * 2**20  #: of one log
_MAX_TAILS_BYTES = 64 * 2**20  #: of several
_LEAST_BYTES = 64 * 1024  #: of each
_LINES_AT_ONCE = 1000
_AGAIN_S = 1.0  #: until what could not be read is tried again


def log_label(service: str, slot: int, count: int) -> str:
    """Of an instance among several services."""
    return service if count == 1 else f"{service} {slot}"


async def show(sources: Mapping[str, LogSource], write: Write, wanted: Selection, *, following: bool) -> None:
    """Writes the last lines of the logs in the order of time and, if `following`, new ones until cancelled.

    With several logs, each line begins with its log's key.
    """
    ends: dict[str, int] = {}
    found: list[tuple[str, Line]] = []
    most = (
        _MAX_TAIL_BYTES if len(sources) == 1 else max(_MAX_TAILS_BYTES // max(1, len(sources)), _LEAST_BYTES)
    )
    for key, source in sources.items():
        if wanted.position is None:
            try:
                lines, ends[key] = await source.last(wanted, most)
            except AgentManagerError as error:  # the others can be shown
                lines = [Line(time.time(), f"agentmgr: {error}\n".encode())]
            found += [(key, line) for line in lines]
        else:
            ends[key] = wanted.position
    if len(sources) > 1:  # what has no time is the oldest; lines of one time stay as they stand in their log
        found.sort(key=lambda item: item[1].at or 0)
    marks = {key: f"[{key}] ".encode() if len(sources) > 1 else b"" for key in sources}
    for some in _batched(found, _LINES_AT_ONCE):
        await write(b"".join(_shown(line, marks[key], wanted) for key, line in some))
    if not following:
        return
    async with trio.open_nursery() as nursery:
        for key, source in sources.items():
            marked = partial(_write_new, write, marks[key], wanted)
            nursery.start_soon(_follow, source, marked, ends.get(key))


async def _follow(source: LogSource, write: Write, start: int | None) -> None:
    """`start`: None where it could not be read; then from its end on, once it can."""
    while start is None:
        await trio.sleep(_AGAIN_S)
        with suppress(AgentManagerError):
            _, start = await source.last(Selection(0), 0)
    await source.follow(write, start=start)


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


async def _write_new(write: Write, mark: bytes, wanted: Selection, text: bytes) -> None:
    at = time.time()
    lines = (Line(at, line) for line in text.splitlines(keepends=True) if wanted.has(line))
    if shown := b"".join(_shown(line, mark, wanted) for line in lines):
        await write(shown)


def _shown(line: Line, mark: bytes, wanted: Selection) -> bytes:
    """With nothing before a line, it is left as it is, also where it is not finished yet."""
    stamp = _stamp(line.at) if wanted.timestamps else b""
    end = b"" if line.data.endswith(b"\n") or not (mark or stamp) else b"\n"
    return stamp + mark + line.data + end


def _stamp(at: float | None) -> bytes:
    if at is None:
        return b"-".ljust(25)
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3].encode() + b"Z "
