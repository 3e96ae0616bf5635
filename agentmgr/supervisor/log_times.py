"""When the lines of a log were written: an index beside it, `POSITION.times`.

An instance writes to its log itself, so no line carries its time. `Upkeep` looks at a log within 0.1 s of a
write, and notes how long the file is and when it was last written to. So the time of a line is late by 0.1 s
at most, and by more only where it was written while no manager ran.

The index is a row of pairs of 64-bit integers: milliseconds since 1970, and the length of the live file then;
0 milliseconds: what is before that length was written before there was an index. Rotation moves the content
up, and the lengths with it: those of rotated content are negative.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from attrs import frozen

_PAIR_BYTES = 16
_MOST = 2**17
"""Pairs in an index: 2 MiB. Of one that is full every second pair is dropped: a line's time is then that of a
later one."""


@frozen
class Times:
    """Of a log, by position (`log_window`)."""

    _ends: list[int]
    _at: list[float]

    def of(self, position: int) -> float | None:
        """Seconds since 1970; None where it is not known."""
        number = bisect_right(self._ends, position)
        return (self._at[number] or None) if number < len(self._at) else None

    def first_since(self, at: float) -> int | None:
        """The position of the first byte that was written then or later; None where there is none."""
        number = bisect_left(self._at, at)
        if number == len(self._at):
            return None
        return self._ends[number - 1] if number else -(2**62)


def begin(log: Path) -> None:
    """For a log that is new: the times of its first lines will be known. Raises OSError."""
    os.close(_open(log, os.O_CREAT))


def note(log: Path, stat: os.stat_result) -> None:
    """Notes how long the log is now, if that is news. Only one thread may. Raises OSError."""
    known = _index(log).exists()
    length, count = _last(log)
    if stat.st_size == length:
        return
    if stat.st_size < length:  # it was truncated, or is another file
        _rewrite(log, moved_by=length)
    elif count >= _MOST:
        _rewrite(log, moved_by=0)
    pair = array("q", (stat.st_mtime_ns // 10**6 if known else 0, stat.st_size))
    with open(_open(log, os.O_CREAT | os.O_APPEND), "ab", buffering=0) as index:
        index.write(pair.tobytes())


def rotated(log: Path, *, moved_by: int, kept_from: int) -> None:
    """After so many bytes were cut off its front; of what lay before `kept_from` then nothing is kept."""
    with suppress(OSError):  # on a full disk the times are wrong, and the log is right
        _rewrite(log, moved_by=moved_by, kept_from=kept_from)


def read(log: Path, *, shift: int, end: int, now_ms: int) -> Times:
    """`shift`: what the positions of a reader are ahead of the file's; `end`: its length, `now_ms`: the time
    of its last write.
    """
    ends, at = [], []
    pairs = list(_pairs(log))
    if not pairs and not _index(log).exists():
        pairs = [(0, end)]
    elif not pairs or pairs[-1][1] < end:
        pairs.append((now_ms, end))  # not noted yet
    latest = 0
    for ms, length in pairs:
        latest = max(latest, ms)  # a clock may be set back
        ends.append(length + shift)
        at.append(latest / 1000)
    return Times(ends, at)


def _rewrite(log: Path, *, moved_by: int, kept_from: int = -(2**62)) -> None:
    pairs = [(ms, length - moved_by) for ms, length in _pairs(log) if length > kept_from]
    draft = _index(log).with_suffix(".times.new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(array("q", _flat(pairs if len(pairs) < _MOST else pairs[1::2])).tobytes())
    draft.replace(_index(log))


def _last(log: Path) -> tuple[int, int]:
    """The length that was noted last, and how many there are."""
    if not _index(log).exists():
        return 0, 0
    with open(_open(log, 0), "rb", buffering=0) as index:
        count = os.fstat(index.fileno()).st_size // _PAIR_BYTES
        data = os.pread(index.fileno(), _PAIR_BYTES, max(0, count - 1) * _PAIR_BYTES)
    return (array("q", data)[1] if count else 0), count


def _flat(pairs: Iterable[tuple[int, int]]) -> Iterable[int]:
    return (number for pair in pairs for number in pair)


def _pairs(log: Path) -> Iterable[tuple[int, int]]:
    try:
        file = _open(log, 0)
    except OSError:
        return ()
    with open(file, "rb") as index:
        data = index.read(2 * _MOST * _PAIR_BYTES)
    numbers = array("q", data[: len(data) // _PAIR_BYTES * _PAIR_BYTES])
    return zip(numbers[::2], numbers[1::2], strict=True)


def _open(log: Path, flags: int) -> int:
    flags |= os.O_RDWR if flags else os.O_RDONLY
    return os.open(_index(log), flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def _index(log: Path) -> Path:
    return log.with_suffix(".times")
