"""Paths as users name them, and what the system says of them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .errors import InvalidRequest


def current_directory() -> Path:
    """As the shell names it: a link that led here is kept, so that it may lead elsewhere later.

    Raises `InvalidRequest` when the directory was removed.
    """
    named = os.environ.get("PWD", "")
    with suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return Path(named)
    try:
        return Path.cwd()
    except FileNotFoundError:
        which = f"the current directory {named}" if named else "the current directory"
        raise InvalidRequest(
            f"{which} was removed: change to one that exists, or give absolute paths"
        ) from None


def absolute(path: str | os.PathLike[str]) -> Path:
    """From the current directory on; no link is followed. Raises `InvalidRequest` when that was removed."""
    return Path(path) if os.path.isabs(path) else current_directory() / path


def reason(error: OSError) -> str:
    """What the system said, with the path that it is about where it is known."""
    said = error.strerror or str(error)
    return said if error.filename is None else f"{os.fsdecode(error.filename)}: {said}"
