"""What one instance after another wrote at a position of its service, wherever that is: here, or on a node.

All values are plain, so that a node can be asked the same. A position in a log is an offset, as `log_window`
has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Protocol

import trio
from attrs import frozen

from ..models.fields import searcher
from .log_window import LogMatches, LogWindow

PIECE_BYTES = 64 * 1024
POLL_S = 0.2
"""How often a followed file is looked at: a stat costs microseconds, and inotify is scarce, 128 per user."""
_PATIENCE_S = 20.0

Write = Callable[[bytes], Awaitable[None]]


@frozen
class Selection:
    """Which lines of a log are shown, and how."""

    lines: int | None = 100  #: so many of the last; None: all
    since: datetime | None = None  #: written then or later, as far as that is known
    grep: str | None = None  #: a regular expression (RE2) that a line matches somewhere
    timestamps: bool = False  #: each line begins with its time
    position: int | None = None  #: to begin at, in place of some lines before the end

    @cached_property
    def _finds(self) -> Callable[[str], bool]:
        assert self.grep is not None
        return searcher(self.grep)

    def has(self, line: bytes) -> bool:
        """Whether `grep`, if there is one, is found in the line."""
        return self.grep is None or self._finds(line.rstrip(b"\r\n").decode(errors="replace"))


@frozen
class Line:
    at: float | None  #: seconds since 1970; None: not known
    data: bytes


@frozen
class Reached:
    """How far a log has been followed."""

    position: int | None  #: None: to the beginning of what is kept
    inode: int | None = None  #: of the live file; 0: there was none, None: it is not known yet


async def follow(
    piece: Callable[[Reached, float], Awaitable[tuple[bytes, Reached]]], write: Write, start: int
) -> None:
    """`LogSource.follow`, by pieces: `piece` waits so many seconds for the next one; else it is empty."""
    reached, rest = Reached(start), b""
    while True:
        data, reached = await piece(reached, 0 if rest else _PATIENCE_S)
        if data:
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                await write(whole + newline)
            if len(rest) > PIECE_BYTES:  # never a newline
                await write(rest)
                rest = b""
        elif rest:
            await write(rest)
            rest = b""
        if len(data) < PIECE_BYTES:
            await trio.sleep(POLL_S)


class LogSource(Protocol):
    """One log. An absent one is empty. All raise `AgentManagerError` where it cannot be read now."""

    async def last(self, wanted: Selection, most_bytes: int) -> tuple[Sequence[Line], int]:
        """The last lines that are wanted, and the position after the last one."""

    async def follow(self, write: Write, *, start: int) -> None:
        """Writes what is appended after the position `start`, across rotations, until cancelled.

        `write` gets whole lines, except for a last one that stays unfinished for a while.
        """

    async def window(
        self, limit: int, *, at: int | None = None, after: int | None = None, before: int | None = None
    ) -> LogWindow:
        """As `log_window.window`."""

    async def search(self, text: str, limit: int, *, before: int | None = None) -> LogMatches:
        """As `log_window.search`."""

    async def extent(self) -> tuple[int, int]:
        """The positions of the first byte that is kept, and after the last one."""

    async def read(self, start: int, end: int) -> bytes:
        """The bytes between two positions, as far as they are kept."""
