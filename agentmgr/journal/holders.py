"""Which hosts live: each locks a file beside the journals, and the kernel releases the lock with its process.

    HOLDER.lock       locked by the process that is HOLDER, as long as it lives
    HOLDER.revoked    its manager has decided that it is to hold nothing more, though it may live

A holder is an instance and one run of it: `INSTANCE_ID:RANDOM`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote

from ..process.locks import lock, try_lock

LOCK, REVOKED = ".lock", ".revoked"


_locks = set[int]()


def _close_locks() -> None:
    for fd in _locks:
        os.close(fd)
    _locks.clear()


os.register_at_fork(after_in_child=_close_locks)  # it is not the holder, and may live longer


def run_of(token: str) -> str:
    """What distinguishes a run of an instance from others: by the secret that each is started with."""
    return sha256(token.encode()).hexdigest()[:16] if token else secrets.token_hex(8)


def holder_of(instance_id: str, token: str) -> str:
    return f"{instance_id}:{run_of(token)}"


def instance_of(holder: str) -> str:
    return holder.rpartition(":")[0]


@contextmanager
def living(directory: Path, instance_id: str) -> Iterator[str]:
    """A new holder, which lives until the end of the block. Raises OSError."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    _clear(directory)
    holder = f"{instance_id}:{secrets.token_hex(8)}"
    path = _file(directory, holder, LOCK)
    fd = _locked(path)
    _locks.add(fd)
    try:
        yield holder
    finally:
        _locks.discard(fd)
        for suffix in (LOCK, REVOKED):
            with suppress(OSError):
                os.unlink(_file(directory, holder, suffix))
        os.close(fd)


def lives(directory: Path, holder: str) -> bool:
    """Whether its process lives. Raises OSError."""
    return _is_locked(_file(directory, holder, LOCK))


def may_hold(directory: Path, holder: str) -> bool:
    """Whether its process lives, and no manager has decided against it. Raises OSError."""
    return lives(directory, holder) and not _file(directory, holder, REVOKED).exists()


def all_living(directory: Path) -> list[str]:
    """Those whose processes live. Raises OSError."""
    return [unquote(path.stem) for path in directory.glob(f"*{LOCK}") if _is_locked(path)]


def revoke(directory: Path, instance_id: str) -> None:
    """Any other instance may claim what this one, as it runs now, holds. For its manager. Raises OSError."""
    for path in directory.glob(f"{quote(instance_id, safe='')}%3A*{LOCK}"):
        path.with_suffix(REVOKED).touch(mode=0o600)


def _file(directory: Path, holder: str, suffix: str) -> Path:
    return directory / f"{quote(holder, safe='')}{suffix}"


def _locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        lock(fd)  # another process has it only for the moment of a look
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)  # cleared away between the two


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe would be waited for
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd, shared=True)  # so that two who look do not take each other for the holder
    finally:
        os.close(fd)


def _clear(directory: Path) -> None:
    """Removes what processes left that were killed."""
    for path in directory.glob(f"*{LOCK}"):
        if not _is_locked(path):
            for left in (path, path.with_suffix(REVOKED)):
                with suppress(OSError):
                    left.unlink()
