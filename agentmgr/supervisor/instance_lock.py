"""A lock that an instance inherits, with all that it starts: while it is held, something of it lives.

The lock belongs to the open file, not to a process. We open the file, lock it and let the child inherit the
descriptor; when we close ours, the lock lasts until the last process that inherited it has ended, or closed
it. A process cannot help but inherit it, also one that has left its session and cleared its environment.
Only one that closes all its descriptors, as a proper daemon does, lets go of it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from . import procfs

DIRECTORY = ".lifelines"
"""Where the locks are, in the directory of the logs. The name is that of earlier versions, whose instances
are adopted; no service has a name that begins with a dot."""

_DELETED = " (deleted)"  # as /proc says it


class InstanceLock:
    def __init__(self, file: Path) -> None:
        self._file = os.path.realpath(file)  # as /proc shows it

    def open(self) -> int | None:
        """A descriptor to be inherited, and then closed here. None where the file system has no locks."""
        try:
            os.makedirs(os.path.dirname(self._file), mode=0o700, exist_ok=True)
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            # Shared: whatever may be left of the launch before must not keep the next one from having it.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def held(self) -> bool:
        """Whether something lives that has inherited it."""
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return False

    def holds(self, pid: int) -> bool:
        """By the path that the file was opened at: neither a copy nor another link to it has the same."""
        ours = (self._file, self._file + _DELETED)
        return pid != os.getpid() and any(target in ours for target in procfs.open_targets(pid))

    def holders(self) -> set[int]:
        """Those that hold it, as far as we may look into them: our own user's. Looks at every open file."""
        return {pid for pid in procfs.pids() if self.holds(pid)}

    def claim(self, mark: str) -> None:
        """Writes down whose the instance is from now on, which holds another one's file. Raises OSError."""
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
        """Unless it is held."""
        if not self.held():
            with suppress(OSError):
                os.unlink(self._file)
