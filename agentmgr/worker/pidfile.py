"""The file that shows that a worker lives: it holds a lock on it, which dies with its process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from ..codec import from_json, to_json
from ..errors import InvalidRequest
from ..process.locks import try_lock


@frozen
class PidFile:
    """The content of the file."""

    worker_id: str
    pid: int
    guest: bool  #: as in `WorkerSpec`


@contextmanager
def locked(directory: Path, content: PidFile) -> Iterator[None]:
    """Inside the block, `living` lists this process."""
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{content.worker_id}.lock"
    draft = path.with_suffix(".new")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try_lock(fd)
        os.write(fd, to_json(content).encode())
        draft.rename(path)  # only now: an unlocked one is taken for that of a dead worker
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def living(directory: Path) -> list[PidFile]:
    """The files of the workers that live; those of dead ones are removed."""
    return [found for path in directory.glob("*.lock") if (found := _read(path)) is not None]


def _read(path: Path) -> PidFile | None:
    with suppress(FileNotFoundError, InvalidRequest):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if try_lock(fd, shared=True):
                path.unlink()
                return None
            worker = from_json(os.pread(fd, 4096, 0), PidFile)
            return worker if _has_open(worker.pid, path) else None
        finally:
            os.close(fd)
    return None


def _has_open(pid: int, path: Path) -> bool:
    """By this name: a hard link to it in a copy of the directory is locked as well."""
    ours, directory = os.path.realpath(path), f"/proc/{pid}/fd"
    with suppress(OSError):
        return any(os.path.realpath(f"{directory}/{number}") == ours for number in os.listdir(directory))
    return False
