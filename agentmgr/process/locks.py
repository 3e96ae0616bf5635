"""Locks on open files by flock(2): the kernel releases one when its last descriptor is closed."""

from __future__ import annotations

import fcntl


def lock(fd: int) -> None:
    """Locks an open file. It blocks: only for locks that are held for moments. Raises `OSError`."""
    fcntl.flock(fd, fcntl.LOCK_EX)


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Locks an open file until it is closed, here and where it was inherited; False if another holds it.

    It does not wait: a blocking flock(2) in a thread could not be given up. Raises `OSError` where the file
    system has no locks.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
