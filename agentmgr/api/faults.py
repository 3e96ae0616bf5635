"""What goes wrong on a connection outside of every handler: a line in the log, and no more than a few.

Any stranger can send bytes at which the HTTP libraries stumble, again and again. Their errors are one line
each, without a traceback; ours, such as of a stream's producer, keep theirs. Of both only one a minute is
written, and how many were not.
"""

from __future__ import annotations

import logging
import math
import sys
import traceback
from types import TracebackType

import trio

from ..errors import leaves

log = logging.getLogger("agentmgr.api")

INTERVAL_S = 60.0

_LIBRARIES = frozenset({"h11", "hypercorn", "quart", "quart_trio", "werkzeug"})
#: Their frames do not say whose fault it is; the frame that called them does.
_CARRIERS = sys.stdlib_module_names | {"anyio", "trio"}


class Faults:
    """Writes errors of connections to the log, each kind once a minute."""

    def __init__(self) -> None:
        self._theirs = _Line()
        self._ours = _Line()

    def report(self, failed: BaseExceptionGroup[Exception]) -> None:
        for error in leaves(failed):
            where = _where(error.__traceback__)
            if isinstance(error, (trio.BrokenResourceError, trio.ClosedResourceError)):
                continue  # the client has gone
            if where.partition(".")[0] in _LIBRARIES:
                self._theirs.write(logging.WARNING, f"a request was given up by {where}: {error!r}")
            else:
                self._ours.write(logging.ERROR, f"a connection ended by an error in {where}", error)

    def flush(self) -> None:
        """Writes how many were suppressed since the last line."""
        self._theirs.flush()
        self._ours.flush()


class _Line:
    def __init__(self) -> None:
        self._next_at = -math.inf
        self._suppressed = 0

    def write(self, level: int, message: str, error: Exception | None = None) -> None:
        now = trio.current_time()
        if now < self._next_at:
            self._suppressed += 1
            return
        more, self._suppressed = self._suppressed, 0
        self._next_at = now + INTERVAL_S
        log.log(
            level, "%s%s", message, f" ({more} more since the last such line)" if more else "", exc_info=error
        )

    def flush(self) -> None:
        if self._suppressed:
            log.warning("%d more requests or connections failed like that", self._suppressed)
            self._suppressed = 0


def _where(tb: TracebackType | None) -> str:
    """The module, and the line, that raised: the innermost that is not the standard library or trio."""
    frames = list(traceback.walk_tb(tb))
    for frame, line in reversed(frames):
        module = frame.f_globals.get("__name__", "?")
        if module.partition(".")[0] not in _CARRIERS and not module.startswith(f"{__package__}.connection"):
            return f"{module}:{line}"
    return "trio"
