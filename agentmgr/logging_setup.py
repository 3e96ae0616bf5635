"""Where log records go: pretty to a terminal, as JSON lines to files.

The modules of this package log with the standard library alone (`logging.getLogger(__name__)`), so an
application that embeds it has them under `agentmgr` in its own logging. Only our own processes call this.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from .process.listening import log_shortages_rarely
from .settings import LogFormat, LogLevel
from .visible import visible

FILE_BYTES = 10 * 2**20
FILES_KEPT = 5


def configure_logging(
    level: LogLevel = LogLevel.INFO,
    format: LogFormat = LogFormat.AUTO,
    *,
    stream: TextIO | None = None,
) -> None:
    """Sends the records of this package from `level` on, and warnings of all others, to `stream` (stderr).

    Replaces what an earlier call set up.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    handler = logging.StreamHandler(stream)
    pretty = format is LogFormat.PRETTY or (format is LogFormat.AUTO and terminal)
    handler.setFormatter(
        _pretty(colors=terminal and not os.environ.get("NO_COLOR")) if pretty else _JsonLines()
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("agentmgr").setLevel(level.upper())
    log_shortages_rarely()


@contextmanager
def logging_to(file: Path, *, alone: bool = False) -> Iterator[None]:
    """While the block runs, the records go to `file` too, as JSON lines; `alone`: and nowhere else.

    A file of 10 MiB makes room for a new one, and the last five are kept.
    """
    root = logging.getLogger()
    before = root.handlers[:]
    handler = _OwnersFile(file, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    root.handlers[:] = [handler] if alone else [*before, handler]
    try:
        yield
    finally:
        root.handlers[:] = before
        handler.close()


class _OwnersFile(logging.handlers.RotatingFileHandler):
    """Each new file is for its owner only; one that was removed or renamed is made again."""

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is not None and not _has_name(self.stream, self.baseFilename):
            with suppress(OSError):  # else it goes on with the file that it has
                self.stream, old = self._open(), self.stream
                old.close()
        super().emit(record)

    def _open(self) -> TextIOWrapper:
        opener = partial(os.open, mode=0o600)
        return open(self.baseFilename, "a", encoding=self.encoding, opener=opener)


def _has_name(stream: TextIOWrapper, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(name))
    except OSError:
        return False


class _JsonLines(logging.Formatter):
    """Each record as one line; what its `extra` says are members of their own."""

    _USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        line = {"event": record.getMessage(), "logger": record.name, "level": record.levelname.lower()}
        line.update((name, value) for name, value in vars(record).items() if name not in self._USUAL)
        at = datetime.fromtimestamp(record.created, UTC)
        line["timestamp"] = f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"
        if record.stack_info:
            line["stack_info"] = record.stack_info
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


def _pretty(*, colors: bool) -> logging.Formatter:
    # 100 ms to import: only for a terminal.
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _make_visible,
        structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
    ]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)


def _make_visible(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """A client's words must not start a line of their own, nor move the cursor; a traceback has its lines."""
    return {
        key: visible(value, lines=key == "exception") if isinstance(value, str) else value
        for key, value in event.items()
    }
