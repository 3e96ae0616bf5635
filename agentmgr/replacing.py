"""A file that is replaced as a whole: who reads it, also after a kill, sees the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path


def replace(path: Path, content: bytes, *, lasting: bool) -> None:
    """For its owner only. `lasting`: it is on the disk when this returns, and outlives a power cut.

    Raises OSError.
    """
    draft = path.with_name(f"{path.name}.new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        if lasting:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path)
