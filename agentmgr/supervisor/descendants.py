"""Which processes belong to an instance, by four marks; no process loses all of them by accident.

The marks: its session, the token in the environment it was started with, its control group, the lock that it
inherited. A daemon that has left its session still has the token; one that has cleared its environment too is
still in the group, or, where there are no groups, holds the lock.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Protocol

import trio
from attrs import define

from . import procfs
from .cgroup import ControlGroup
from .instance_lock import InstanceLock
from .system import in_thread

log = logging.getLogger("agentmgr.supervisor")

SHORTAGE_PAUSE_S = 0.1

# Worker threads are shared by all of trio; forty busy ones delayed a spawn by 3.9 s (measured).
_limiter = trio.CapacityLimiter(1)


class ProcessSet(Protocol):
    """Some processes, as of now. Each may end at any moment, and its pid pass to another process."""

    async def find(self) -> set[int]: ...

    def include(self, pid: int) -> bool:
        """Whether it is one of them; asked again with a pidfd open, when the pid cannot change hands."""


class ProcessScan:
    """The living processes. Concurrent callers share one scan, taken after all of them have asked."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._next: _Scan | None = None

    async def find(self, wanted: Callable[[procfs.Living], bool], *, since_ticks: int = 0) -> set[int]:
        """The processes that are `wanted`, of those started at `since_ticks` or later: a child is not older
        than its parent.
        """
        scan = self._next = self._next or _Scan()
        scan.since_ticks = min(scan.since_ticks, since_ticks)
        async with self._lock:
            while scan.living is None:
                self._next = None  # a caller that comes from now on needs a later scan
                try:
                    scan.living = await in_thread(procfs.scan, scan.since_ticks, limiter=_limiter)
                except OSError as error:  # no descriptor left to look with; there will be one
                    log.warning("cannot list processes, retrying: %s", error)
                    await trio.sleep(SHORTAGE_PAUSE_S)
        return {living.pid for living in scan.living if wanted(living)}


@define(eq=False)
class _Scan:
    since_ticks: int = sys.maxsize
    living: list[procfs.Living] | None = None


class Descendants:
    """The processes of one instance: its leader, and all that came from it."""

    def __init__(
        self,
        leader: int,
        token: str,
        start_ticks: int,
        scan: ProcessScan,
        group: ControlGroup,
        lock: InstanceLock,
    ) -> None:
        self._leader, self._token, self._start_ticks = leader, token, start_ticks
        self._scan, self._group, self._lock = scan, group, lock
        self.session_is_ours = True  #: false once its session id may belong to another process

    @classmethod
    def left_behind(cls, scan: ProcessScan, group: ControlGroup, lock: InstanceLock) -> Descendants:
        """What is left of an instance whose leader is gone and whose token is not known."""
        descendants = cls(0, "", 0, scan, group, lock)
        descendants.session_is_ours = False
        return descendants

    async def find(self) -> set[int]:
        found = (
            await self._scan.find(self._bears_a_mark, since_ticks=self._start_ticks) | self._group.members()
        )
        if not found and self._lock.held():
            found = await in_thread(self._lock.holders, limiter=_limiter)
        return found

    def include(self, pid: int) -> bool:
        living = procfs.living(pid)
        return living is not None and (
            self._bears_a_mark(living) or self._group.has(pid) or self._lock.holds(pid)
        )

    def kill(self) -> None:
        """Kills all of them at once if they have a control group; else does nothing."""
        self._group.kill()

    def live(self) -> bool:
        """Whether any of them lives, even one that cannot be identified."""
        return self._lock.held() or bool(self._group.members())

    def _bears_a_mark(self, living: procfs.Living) -> bool:
        return living.token == self._token or (self.session_is_ours and living.session == self._leader)


class Orphans:
    """Living processes of instances that are no more, by a condition."""

    def __init__(self, scan: ProcessScan, wanted: Callable[[procfs.Living], bool]) -> None:
        self._scan, self._wanted = scan, wanted

    async def find(self) -> set[int]:
        return await self._scan.find(self._wanted)

    def include(self, pid: int) -> bool:
        living = procfs.living(pid)
        return living is not None and self._wanted(living)
