"""One manager per database: an exclusive lock that dies with its process, so that none is ever stale."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import trio

from ..errors import DatabaseUnusable, ManagerAlreadyRunning
from .locks import try_lock
from .paths import RuntimePaths

RETRY_S = 0.02


def manager_pid(paths: RuntimePaths) -> int | None:
    """The pid of the process that manages the database; None where none does, or it cannot be seen."""
    return _holder(paths.lock)


def is_starting(paths: RuntimePaths) -> bool:
    """Whether another process is about to manage the database, or waits for a manager that it has started."""
    return _holder(paths.starting_lock) not in (None, os.getpid(), os.getppid())


async def start_permit(paths: RuntimePaths) -> ExitStack:
    """Waits until no other process brings a manager up, and keeps others waiting until it is closed.

    The lock dies with its holder. Raises `DatabaseUnusable`.
    """
    paths.create()
    with ExitStack() as stack:
        fd = os.open(paths.starting_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, fd)
        while not try_lock(fd):  # noqa: ASYNC110 - the kernel reports no release
            await trio.sleep(RETRY_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        return stack.pop_all()


def _holder(lock: Path) -> int | None:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, so that two who look do not take each other for a manager.
        if try_lock(fd, shared=True):
            return None
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        return int(pid) if pid.isdigit() else None
    except OSError:
        return None
    finally:
        os.close(fd)


class ManagerLock:
    """The right to manage a database, held inside a `with` block.

    It is an flock on a file of its own, which holds the owner's pid as text. Children do not inherit it.
    Raises `ManagerAlreadyRunning` and `DatabaseUnusable`.
    """

    _databases: ClassVar[set[tuple[int, int]]] = set()  # device and inode of those this process holds

    def __init__(self, paths: RuntimePaths) -> None:
        self._paths = paths
        self._fd: int | None = None
        self._database_fd: int | None = None
        self._database: tuple[int, int] | None = None

    def acquire(self) -> None:
        assert self._fd is None
        self._paths.create()
        path = self._paths.lock
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DatabaseUnusable(f"{path} cannot be opened: {error.strerror}") from error
        try:
            free = try_lock(fd)
        except OSError as error:  # a file system without locks
            os.close(fd)
            raise DatabaseUnusable(f"{path} cannot be locked: {error.strerror}") from error
        if not free:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise self._owned_by(f"the process {pid}" if pid else "another process")
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except OSError as error:  # a full disk
            os.close(fd)
            raise DatabaseUnusable(f"{path} cannot be written: {error.strerror}") from error
        self._fd = fd

    def hold_database(self) -> None:
        """Locks the database file too, now that it exists: the lock file can be deleted under its owner.

        Only on Linux, where an flock does not meet the fcntl locks that SQLite takes on the same file. A
        second call does nothing.
        """
        assert self._fd is not None
        if sys.platform != "linux" or self._database is not None:
            return
        path = self._paths.database
        try:
            status = os.stat(path)
            database = (status.st_dev, status.st_ino)
            if database in self._databases:
                # Not opened: closing it again would drop the locks that SQLite holds for this process.
                raise self._owned_by(f"the process {os.getpid()}")
            self._database_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if not try_lock(self._database_fd):
                raise self._owned_by("another process")
        except OSError as error:
            raise DatabaseUnusable(f"{path} cannot be locked: {error.strerror}") from error
        self._database = database
        self._databases.add(database)

    def trouble(self) -> str | None:
        """What has become of the database file since it was locked, and what to do; None when it is there."""
        if self._database is None:
            return None
        path = self._paths.database
        try:
            status = os.stat(path)
        except OSError as error:
            became = "deleted" if isinstance(error, FileNotFoundError) else f"lost ({error.strerror})"
        else:
            if (status.st_dev, status.st_ino) == self._database:
                return None
            became = "replaced by another file"
        return (
            f"the database {path} was {became}, and what the manager writes is lost at its end: "
            "`agentmgr export > FILE`, `agentmgr shutdown` and `agentmgr apply FILE` bring back what it knows"
        )

    def _owned_by(self, owner: str) -> ManagerAlreadyRunning:
        return ManagerAlreadyRunning(
            f"{owner} manages {self._paths.database} already: use that one, or end it with "
            "`agentmgr shutdown`"
        )

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
        """Call it when the database is closed: with this file's closing SQLite loses its locks on it."""
        if self._database_fd is not None:
            os.close(self._database_fd)
            self._database_fd = None
        if self._database is not None:
            self._databases.discard(self._database)
            self._database = None
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
