"""A lock that an instance and all its descendants inherit: while it is held, one of them lives.

A `flock` belongs to the open file, not to a process. The supervisor opens the file, locks it, and lets the
child inherit the descriptor; when the supervisor closes its own, the lock lasts until the last process that
inherited it has ended or closed it. A process inherits it even if it leaves its session and clears its
environment. Only a process that closes all its descriptors, as a proper daemon does, releases it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..process.locks import try_lock
from . import procfs

DIRECTORY = ".lifelines"
"""Where the locks are, in the directory of the logs. The name is that of earlier versions, whose instances
are adopted; no service has a name that begins with a dot."""

_DELETED = " (deleted)"  # as /proc says it


class InstanceLock:
    def __init__(self, file: Path) -> None:
        self._file = os.path.realpath(file)  # as /proc shows it

    def open(self) -> int | None:
        """A descriptor for a child to inherit; the caller closes it. None if the file system has no locks."""
        try:
            os.makedirs(os.path.dirname(self._file), mode=0o700, exist_ok=True)
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            # Shared: a process left from the previous launch must not keep the next launch from taking it.
            if try_lock(descriptor, shared=True):
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
        return None

    def held(self) -> bool:
        """Whether a process lives that has inherited it."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not try_lock(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def holds(self, pid: int) -> bool:
        """Whether the process has it open, by its path: a copy or another link does not count."""
        ours = (self._file, self._file + _DELETED)
        return pid != os.getpid() and any(target in ours for target in procfs.open_targets(pid))

    def holders(self) -> set[int]:
        """The processes of our own user that hold it (others cannot be read). Reads all open files."""
        return {pid for pid in procfs.pids() if self.holds(pid)}

    def claim(self, mark: str) -> None:
        """Marks an instance that holds another directory's lock as ours from now on. Raises OSError."""
        os.makedirs(os.path.dirname(self._file), mode=0o700, exist_ok=True)
        with open(os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(mark)

    def claimed_by(self, mark: str) -> bool:
        try:
            with open(self._file) as file:
                return file.read() == mark
        except OSError:
            return False

    def remove(self) -> None:
        """Removes the file, unless the lock is held."""
        if not self.held():
            with suppress(OSError):
                os.unlink(self._file)
