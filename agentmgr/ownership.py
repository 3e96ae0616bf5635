"""One manager per database: an exclusive lock that dies with its process, so that none is ever stale."""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

import trio

from .errors import DatabaseUnusable, ManagerAlreadyRunning
from .settings import RuntimePaths

RETRY_S = 0.02


def holder(paths: RuntimePaths) -> int | None:
    """The pid of whoever manages the database; None where nobody does, or it cannot be told."""
    try:
        fd = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, so that two who look do not take each other for a manager.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        return int(pid) if pid.isdigit() else None
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


class ManagerLock:
    """The right to manage a database, held inside a `with` block.

    It is an flock on a file of its own (SQLite has its own locks on the database), which holds the owner's
    pid as text. Children do not inherit it. Raises `ManagerAlreadyRunning` and `DatabaseUnusable`.
    """

    def __init__(self, paths: RuntimePaths) -> None:
        self._paths = paths
        self._fd: int | None = None

    def acquire(self) -> None:
        assert self._fd is None
        self._paths.create()
        path = self._paths.lock
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DatabaseUnusable(f"{path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            owner = f"the process {pid}" if pid else "another process"
            raise ManagerAlreadyRunning(
                f"{owner} manages {self._paths.database} already: use that one, or end it with "
                "`agentmgr shutdown`"
            ) from None
        except OSError as error:  # a file system without locks
            os.close(fd)
            raise DatabaseUnusable(f"{path} cannot be locked: {error.strerror}") from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._fd = fd

    async def acquire_within(self, patience_s: float) -> None:
        """Waits for an owner that is done in a moment, such as another `agentmgr register`."""
        give_up_at = trio.current_time() + patience_s
        while True:
            try:
                self.acquire()
            except ManagerAlreadyRunning:
                if trio.current_time() >= give_up_at:
                    raise
            else:
                return
            await trio.sleep(RETRY_S)

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> ManagerLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
