"""Where log records go: pretty to a terminal, as JSON lines to files.

The modules of this package log with the standard library alone (`logging.getLogger(__name__)`), so an
application that embeds it has them under `agentmgr` in its own logging. Only our own processes call this.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from .settings import LogFormat, LogLevel

FILE_BYTES = 10 * 2**20
FILES_KEPT = 5


def configure_logging(
    level: LogLevel = LogLevel.INFO,
    format: LogFormat = LogFormat.AUTO,
    *,
    stream: TextIO | None = None,
    file: Path | None = None,
) -> None:
    """Sends the records of this package from `level` on, and warnings of all others, to `stream` (stderr).

    With `file`, they also go there as JSON lines: at most 10 MiB, then to a new file, and the last five are
    kept. Replaces what an earlier call set up.
    """
    # 140 ms to import: not for a command that only asks the daemon.
    import structlog

    stream = stream or sys.stderr
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]

    def formatter(*last: Any) -> logging.Formatter:
        meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[meta, *last])

    def as_json() -> logging.Formatter:
        return formatter(structlog.processors.format_exc_info, structlog.processors.JSONRenderer())

    terminal = stream.isatty()
    to_stream = logging.StreamHandler(stream)
    if format is LogFormat.PRETTY or (format is LogFormat.AUTO and terminal):
        colors = terminal and not os.environ.get("NO_COLOR")
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )
        to_stream.setFormatter(formatter(_escape_controls, renderer))
    else:
        to_stream.setFormatter(as_json())
    handlers: list[logging.Handler] = [to_stream]
    if file is not None:
        to_file = logging.handlers.RotatingFileHandler(
            file, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8"
        )
        to_file.setFormatter(as_json())
        handlers.append(to_file)
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("agentmgr").setLevel(level.upper())


def _escape_controls(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """A client's words must not start a line of their own, nor move the cursor."""
    return {key: _escaped(value) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
