"""Reading a log by position: a window of its lines, a search, all of it.

A position is an offset in bytes, as in `logs`: of the live file and of its kept copies, which lie before it.
It stays that of its line while the manager runs, whatever is rotated. Nothing here reads a whole log at once.

stdout and stderr of an instance are one file: which of them a line came from is not known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from . import logs

MAX_LINE_BYTES = 16 * 1024  #: a longer line comes in pieces
MAX_WINDOW_BYTES = 2**20
MAX_SEARCH_BYTES = 64 * 2**20  #: in one search: a tenth of a second
_CHUNK_BYTES = 64 * 1024
_SEARCH_BYTES = 2**20  #: at once: between two of them other threads run
_BEFORE_MATCH_BYTES = 1024  #: of a long line, shown before what was found in it


@frozen
class LogLine:
    at: int  #: where it begins
    text: str  #: without its end; what is not UTF-8 is replaced
    cut: bool = False  #: the next piece goes on with it: it is long, or not finished yet


@frozen
class LogWindow:
    begin: int  #: of all that is kept
    end: int
    lines: tuple[LogLine, ...]
    before: int  #: to read what comes before it
    after: int  #: to read on, or follow


@frozen
class LogMatch:
    at: int
    text: str  #: the line, or the part of a long one
    start: int  #: of what was found, in characters of `text`


@frozen
class LogMatches:
    items: tuple[LogMatch, ...]  #: the newest first
    before: int | None  #: to search on; None: all was searched


def window(
    path: Path, limit: int, *, at: int | None = None, after: int | None = None, before: int | None = None
) -> LogWindow:
    """At most `limit` lines: from the one that `at` lies in; after or before a position; else the last ones.

    It blocks. An absent log is empty.
    """
    begin, end = extent(path)
    if at is not None:
        start = _line_start(path, begin, _within(at, begin, end))
        lines = _forward(path, start, end, limit)
    elif after is not None:
        start = _within(after, begin, end)
        lines = _forward(path, start, end, limit)
    else:
        stop = _within(end if before is None else before, begin, end)
        lines, start = _backward(path, begin, stop, limit)
    shown = tuple(line.shown for line in lines)
    return LogWindow(begin, end, shown, lines[0].at if lines else start, lines[-1].end if lines else start)


def search(path: Path, text: str, limit: int, *, before: int | None = None) -> LogMatches:
    """The lines before a position that have `text` in them, in any case; at most `limit`. It blocks."""
    begin, end = extent(path)
    position = _within(end if before is None else before, begin, end)
    floor = max(begin, position - MAX_SEARCH_BYTES)
    found: list[LogMatch] = []
    while position > floor and len(found) < limit:
        start = max(floor, position - _SEARCH_BYTES)
        data = read(path, start, position)
        if not data:
            break
        if start > begin and 0 < (newline := data.find(b"\n") + 1) < len(data):
            start, data = start + newline, data[newline:]
        for match in _matches(data, start, text):
            found.append(match)
            if len(found) == limit:
                return LogMatches(tuple(found), match.at)
        position = start
    return LogMatches(tuple(found), position if position > begin else None)


def extent(path: Path) -> tuple[int, int]:
    """The positions of the first byte that is kept, and after the last one."""
    try:
        with _parts(path) as parts:
            return parts.begin, parts.live.end
    except OSError:
        return 0, 0


def read(path: Path, start: int, end: int) -> bytes:
    """The bytes between two positions, as far as they are kept."""
    pieces: list[bytes] = []
    with suppress(OSError):
        while start < end:
            with _parts(path) as parts:
                piece = parts.read(start, min(end - start, _SEARCH_BYTES))
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
    return b"".join(pieces)


@frozen
class _Parts:
    live: logs.Still
    copies: Sequence[tuple[int, int, Path]]  #: where it begins and ends; the newest first

    @property
    def begin(self) -> int:
        return self.copies[-1][0] if self.copies else self.live.begin

    def read(self, offset: int, size: int) -> bytes:
        if offset >= self.live.begin:
            return self.live.read(offset, min(size, self.live.end - offset))
        for begin, end, copy in self.copies:
            if begin <= offset < end:
                with logs.open_to_read(copy) as file:
                    return os.pread(file.fileno(), min(size, end - offset), offset - begin)
        return b""


@contextmanager
def _parts(path: Path) -> Iterator[_Parts]:
    """Raises OSError where there is no log. No file of it is moved meanwhile."""
    with logs.still(path) as live:
        copies: list[tuple[int, int, Path]] = []
        end = live.begin
        for copy in logs.copies(path):
            size = copy.stat().st_size
            copies.append((end - size, end, copy))
            end -= size
        yield _Parts(live, copies)


@frozen
class _Piece:
    at: int
    data: bytes

    @property
    def end(self) -> int:
        return self.at + len(self.data)

    @property
    def shown(self) -> LogLine:
        whole = self.data.endswith(b"\n")
        return LogLine(self.at, self.data.rstrip(b"\r\n").decode(errors="replace"), cut=not whole)


def _forward(path: Path, start: int, end: int, limit: int) -> list[_Piece]:
    stop = min(end, start + MAX_WINDOW_BYTES)
    data, position = b"", start
    while position < stop and data.count(b"\n") < limit:
        more = read(path, position, min(stop, position + _CHUNK_BYTES))
        if not more:
            break
        data, position = data + more, position + len(more)
    pieces = list(_pieces(data, start))[:limit]
    if position < end and len(pieces) > 1 and pieces[-1].end == position:
        pieces.pop()  # its end was not read
    return pieces


def _backward(path: Path, begin: int, stop: int, limit: int) -> tuple[list[_Piece], int]:
    floor = max(begin, stop - MAX_WINDOW_BYTES)
    data, start = b"", stop
    while start > floor and data.count(b"\n") <= limit:
        more = read(path, max(floor, start - _CHUNK_BYTES), start)
        if not more:
            break
        data, start = more + data, start - len(more)
    if start > begin and 0 < (newline := data.find(b"\n") + 1) < len(data):
        start, data = start + newline, data[newline:]  # its beginning was not read
    return list(_pieces(data, start))[-limit:], start


def _line_start(path: Path, begin: int, at: int) -> int:
    start = max(begin, at - MAX_LINE_BYTES)
    return start + read(path, start, at).rfind(b"\n") + 1


def _pieces(data: bytes, at: int) -> Iterator[_Piece]:
    for line in _lines(data):
        while len(line) > MAX_LINE_BYTES:
            cut = MAX_LINE_BYTES
            while cut > MAX_LINE_BYTES - 4 and line[cut] & 0xC0 == 0x80:  # not within a character
                cut -= 1
            yield _Piece(at, line[:cut])
            at, line = at + cut, line[cut:]
        yield _Piece(at, line)
        at += len(line)


def _lines(data: bytes) -> Iterator[bytes]:
    """At line feeds only: a carriage return is a progress bar's."""
    *whole, rest = data.split(b"\n")
    yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _matches(data: bytes, at: int, text: str) -> Iterator[LogMatch]:
    """The newest first, one for each line."""
    if text.isascii():  # so it is found without decoding anything
        wanted, folded, end = text.lower().encode(), data.lower(), len(data)
        while (found := folded.rfind(wanted, 0, end)) >= 0:
            start = data.rfind(b"\n", 0, found) + 1
            stop = data.find(b"\n", found)
            yield _match(data[start : stop if stop >= 0 else len(data)], at + start, found - start)
            end = start
    else:
        position = at + len(data)
        for line in reversed(list(_lines(data))):
            position -= len(line)
            whole = line.rstrip(b"\r\n").decode(errors="replace")
            if (chars := whole.casefold().find(text.casefold())) >= 0:
                yield _match(line.rstrip(b"\r\n"), position, len(whole[:chars].encode()))


def _match(line: bytes, at: int, found: int) -> LogMatch:
    skipped = max(0, found - _BEFORE_MATCH_BYTES) if len(line) > MAX_LINE_BYTES else 0
    before = line[skipped:found].decode(errors="replace")
    shown = line[skipped : skipped + MAX_LINE_BYTES].rstrip(b"\r").decode(errors="replace")
    return LogMatch(at + skipped, shown, len(before))


def _within(position: int, begin: int, end: int) -> int:
    return min(max(position, begin), end)
