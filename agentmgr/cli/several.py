"""Commands that take several names: one that fails does not keep the others from their turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from ..errors import AgentManagerError
from .group import Cli
from .out import complain, show_traceback


async def each(cli: Cli, names: Iterable[str], do: Callable[[str], Awaitable[None]]) -> int:
    """Awaits `do(name)` for each name once, and says on stderr which failed; the command's exit code."""
    failures = 0
    for name in dict.fromkeys(names):
        try:
            await do(name)
        except AgentManagerError as error:
            failures += 1
            if cli.debug:
                show_traceback(error)
            complain(error.message)
    return int(failures > 0)
