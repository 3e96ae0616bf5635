"""Control groups: where they are, and the one that each instance has for itself.

A process does not leave its group by a new session or environment, and the kernel kills a group as a whole
(`cgroup.kill`, Linux 5.14), faster than any fork. That needs version 2, and a group in which this process may
create others: root has one, and so does a systemd unit with `Delegate=`. Elsewhere an instance has none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

from .system import in_thread

T = TypeVar("T")

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "agentmgr-"
_ABANDONED_S = 3600.0

_limiter = trio.CapacityLimiter(2)


async def move(work: Callable[[int], T], pid: int) -> T:
    """Moves a process between groups in a thread: the kernel took 12 ms for each (measured), because it waits
    until no process is about to fork.
    """
    return await in_thread(work, pid, limiter=_limiter)


class ControlGroup:
    """The version 2 group of one instance, over its restarts. If none can be made, it has no members."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path: Path | None = None
        self._in_proc = ""  #: as /proc/PID/cgroup calls it

    @classmethod
    def of_instance(cls, instance_id: str, node_id: str = "") -> ControlGroup:
        """`node_id`: of the node daemon that runs it. What has replaced it may run on the same machine, by
        another daemon or by the manager, and has the same instance id.
        """
        return cls(f"{_PREFIX}{instance_id}{node_id and f'.{node_id}'}")

    def take_in(self, pid: int) -> None:
        """Moves the process into it, and with it the later descendants. Never raises; blocks."""
        for parent, in_proc in _version_2():
            group = parent / self.name
            try:
                group.mkdir(exist_ok=True)
                write(group / "cgroup.procs", pid)
            except OSError:  # no permission; or the process is gone
                with suppress(OSError):
                    group.rmdir()
            else:
                self._path, self._in_proc = group, f"{in_proc.rstrip('/')}/{self.name}"

    def adopt(self, pid: int) -> None:
        """Finds the group into which an earlier manager put the process, wherever that manager ran."""
        in_proc = _of(pid)
        if in_proc is not None and in_proc.rpartition("/")[2] == self.name:
            self._path, self._in_proc = _mount() / in_proc.lstrip("/"), in_proc

    def find(self) -> None:
        """Finds the group that an earlier manager made in the place where this one would make it."""
        for parent, in_proc in _version_2():
            if (group := parent / self.name).is_dir():
                self._path, self._in_proc = group, f"{in_proc.rstrip('/')}/{self.name}"

    def members(self) -> set[int]:
        """The living processes in it, and in the groups that they have made within."""
        return set() if self._path is None else _members(self._path) - {0}  # of another process namespace

    def has(self, pid: int) -> bool:
        if self._path is None:
            return False
        group = _of(pid)
        return group is not None and (group == self._in_proc or group.startswith(f"{self._in_proc}/"))

    def kill(self) -> None:
        """Kills all processes in it at once."""
        if self._path is not None:
            with suppress(OSError):  # no such file before Linux 5.14: then `process.kill_all` ends them
                write(self._path / "cgroup.kill", 1)

    def remove(self) -> None:
        """Removes it, if it is empty; it stays if a process in it does not die."""
        if self._path is not None:
            _remove(self._path)
            self._path = None


def remove_abandoned() -> None:
    """Removes empty groups of managers that never came back, of any database. Never raises; blocks.

    Only old ones: a process may be about to enter a new one.
    """
    made_before = time.time() - _ABANDONED_S
    for _, parent in hierarchies():
        for group in parent.glob(f"{_PREFIX}ins_*"):
            with suppress(OSError):  # another manager removes it at the same time
                if group.stat().st_mtime < made_before and not _members(group):
                    _remove(group)


def _members(group: Path) -> set[int]:
    found: set[int] = set()
    for directory, _, _ in os.walk(group):
        with suppress(OSError):
            found.update(map(int, Path(directory, "cgroup.procs").read_text().split()))
    return found


def _remove(group: Path) -> None:
    """Removes the group and the groups in it; those that are not empty stay."""
    for directory, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)


def hierarchies() -> Iterator[tuple[list[str], Path]]:
    """The groups that this process is in: their controllers (none for version 2) and their paths."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers:
            yield controllers.split(","), _ROOT / controllers / path.lstrip("/")
    for parent, _ in _version_2():
        yield [], parent


def offer(parent: Path, controller: str) -> None:
    """Enables the controller for the groups in this one (version 2), if this process may."""
    with suppress(OSError):
        write(parent / "cgroup.subtree_control", f"+{controller}")


def write(file: Path, value: str | int) -> None:
    """Raises OSError."""
    # No O_CREAT: a directory in which files can be made is no control group.
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _version_2() -> Iterator[tuple[Path, str]]:
    """Where to make groups of version 2, and the name of that directory in /proc; at most one."""
    in_proc = _of(os.getpid())
    if in_proc is None:
        return
    path = _mount() / in_proc.lstrip("/")
    if in_proc != "/" and _delegated(path.parent):
        # A group with processes in it, as ours, cannot have limited groups within: so beside ours, which
        # is what systemd's `DelegateSubgroup=` is for.
        path, in_proc = path.parent, os.path.dirname(in_proc)
    yield path, in_proc


def _delegated(group: Path) -> bool:
    """Whether systemd has delegated it to its unit (systemd.resource-control(5))."""
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            return os.getxattr(group, name) == b"1"
    return False


def _of(pid: int) -> str | None:
    """Its group of version 2, as /proc calls it."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def _mount() -> Path:
    # Beside version 1 it is usually mounted at `unified`.
    return _ROOT if (_ROOT / "cgroup.controllers").exists() else _ROOT / "unified"
