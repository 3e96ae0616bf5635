"""Limits on what an instance may use: by a control group if one can be made, else by rlimits if they will do.

A group limits the instance together with its descendants. An rlimit limits each process by itself: right for
open files, better than nothing for memory. The number of processes it limits per user, not per service, so it
is not used for that.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..models import ServiceConfig
from . import cgroup

_CPU_PERIOD_US = 100_000
_MEMORY = ("memory.max", "memory.limit_in_bytes")


class Limits:
    """The limits of one instance, over its restarts."""

    def __init__(self, config: ServiceConfig, name: str) -> None:
        """`name`: of the groups to make."""
        self._config = config
        self._name = name
        self._groups: list[Path] = []

    @property
    def wanted(self) -> bool:
        config = self._config
        limits = config.memory_limit_mb, config.cpu_limit_percent, config.max_processes, config.max_open_files
        return any(limit is not None for limit in limits)

    def impose(self, pid: int) -> tuple[str, ...]:
        """Limits the process and its later descendants; returns which limits could not be set, and why.

        Never raises; blocks.
        """
        config, failed = self._config, []
        if config.max_open_files is not None and not _prlimit(
            pid, resource.RLIMIT_NOFILE, config.max_open_files
        ):
            failed.append("max_open_files: above what this user may have")
        if config.max_processes is not None and not self._join(
            pid, "pids", {"pids.max": config.max_processes}
        ):
            failed.append("max_processes: no control group of our own for it")
        if config.cpu_limit_percent is not None:
            quota = config.cpu_limit_percent * _CPU_PERIOD_US // 100
            files: dict[str, str | int] = {
                "cpu.max": f"{quota} {_CPU_PERIOD_US}",
                "cpu.cfs_quota_us": quota,
            }
            if not self._join(pid, "cpu", files):
                failed.append("cpu_limit_percent: no control group of our own for it")
        if config.memory_limit_mb is not None:
            limit = config.memory_limit_mb * 2**20
            if not self._join(pid, "memory", dict.fromkeys(_MEMORY, limit)):
                _prlimit(pid, resource.RLIMIT_DATA, limit)
                failed.append("memory_limit_mb: no control group of our own for it, so per process only")
        return tuple(failed)

    def memory_kills(self) -> int:
        """How many of its processes its memory limit has killed so far. Never raises."""
        count = 0
        for file in (
            group / name for group in self._groups for name in ("memory.events", "memory.oom_control")
        ):
            with suppress(OSError, ValueError):
                fields = dict(line.split() for line in file.read_text().splitlines())
                count += int(fields.get("oom_kill", 0))
        return count

    @property
    def memory_by_group(self) -> bool:
        return any((group / name).exists() for group in self._groups for name in _MEMORY)

    def adopt(self) -> None:
        """Finds the groups that an earlier manager made."""
        self._groups = [
            group for _, parent in cgroup.hierarchies() if (group := parent / self._name).is_dir()
        ]

    def lift(self) -> None:
        """Removes the groups, which must be empty by now."""
        for group in self._groups:
            with suppress(OSError):  # a process in it does not die; the next manager finds it
                group.rmdir()
        self._groups = []

    def _join(self, pid: int, controller: str, files: Mapping[str, str | int]) -> bool:
        """Puts it into a group of its own with one of `files` set, which are named as in version 2 or 1."""
        for controllers, parent in cgroup.hierarchies():
            if controllers and controller not in controllers:
                continue
            if not controllers:
                cgroup.offer(parent, controller)
            group = parent / self._name
            try:
                group.mkdir(exist_ok=True)
                name = next(name for name in files if (group / name).exists())
                cgroup.write(group / name, files[name])
                cgroup.write(group / "cgroup.procs", pid)
            except (OSError, StopIteration):  # no permission, or no such controller
                with suppress(OSError):  # it stays when another limit has it
                    group.rmdir()
                continue
            self._groups.append(group)
            return True
        return False


def _prlimit(pid: int, which: int, value: int) -> bool:
    try:
        resource.prlimit(pid, which, (value, value))
    except (OSError, ValueError):
        return False
    return True
