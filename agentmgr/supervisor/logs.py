"""Where the output of an instance goes: a file that it appends to by itself, also when no manager runs."""

from __future__ import annotations

import os
from pathlib import Path

LAST_WORDS_LINES = 15
_LAST_WORDS_BYTES = 4096


def path(log_dir: Path, service_name: str, slot: int) -> Path:
    return log_dir / service_name / f"{slot}.log"


def open_for_append(file: Path) -> int:
    """A descriptor for a child's stdout and stderr. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def last_words(file: Path, since: int) -> str:
    """The last lines that were written after the first `since` bytes; printable, and bounded."""
    try:
        with file.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            start = max(since if since <= end else 0, end - _LAST_WORDS_BYTES)
            log.seek(start)
            text = log.read(_LAST_WORDS_BYTES).decode(errors="replace")
    except OSError:
        return ""
    lines = ["".join(c for c in line if c.isprintable() or c == "\t").rstrip() for line in text.splitlines()]
    return "\n".join(line for line in lines[-LAST_WORDS_LINES:] if line)
