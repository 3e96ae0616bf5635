"""What one instance after another wrote at a position of its service, wherever that is: here, or on a node.

All values are plain, so that a node can be asked the same. A position in a log is an offset, as `log_window`
has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Protocol

from attrs import frozen

from ..models.fields import searcher
from .log_window import LogMatches, LogWindow

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
