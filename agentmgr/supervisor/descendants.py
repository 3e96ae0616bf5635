"""Which processes belong to an instance, by marks that no process can shed all at once.

Its session, the token in the environment it was started with, its control group, the lock that it inherited.
A daemon that has left its session still has the token; one that has cleared its environment too is still in
the group, or, where there are no groups, holds the lock.
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
from .threads import in_thread

log = logging.getLogger("agentmgr.supervisor")

SHORTAGE_PAUSE_S = 0.1

# Worker threads are shared by all of trio; forty busy ones delayed a spawn by 3.9 s (measured).
_limiter = trio.CapacityLimiter(1)


class ProcessSet(Protocol):
    """Some processes, as of now: each may have ended a moment later, and its number be another's."""

    async def find(self) -> set[int]: ...

    def include(self, pid: int) -> bool:
        """Asked again once a pidfd is open, when the pid cannot be another process's any more."""


class ProcessScan:
    """The living processes. Concurrent callers share one scan, taken after all of them have asked."""

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._next: _Scan | None = None

    async def find(self, wanted: Callable[[procfs.Living], bool], *, since_ticks: int = 0) -> set[int]:
        """Those that began no earlier: nobody is older than who started them."""
        scan = self._next = self._next or _Scan()
        scan.since_ticks = min(scan.since_ticks, since_ticks)
        async with self._turn:
            while scan.living is None:
                self._next = None  # who comes from now on needs a later one
                try:
                    scan.living = await in_thread(procfs.scan, scan.since_ticks, limiter=_limiter)
                except OSError as error:  # no descriptor to be had for looking; one will be
                    log.warning("cannot look for processes, trying again: %s", error)
                    await trio.sleep(SHORTAGE_PAUSE_S)
        return {living.pid for living in scan.living if wanted(living)}


@define(eq=False)
class _Scan:
    since_ticks: int = sys.maxsize
    living: list[procfs.Living] | None = None


class Descendants:
    """The processes of one instance."""

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
        self.session_is_ours = True  #: false once its number may be another's

    @classmethod
    def left_behind(cls, scan: ProcessScan, group: ControlGroup, lock: InstanceLock) -> Descendants:
        """The rest of an instance whose leader is gone and whose token is not known."""
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
        """Kills all of them at once, if they have a control group; else does nothing."""
        self._group.kill()

    def live(self) -> bool:
        """Whether any process of it lives, even one that we cannot identify."""
        return self._lock.held() or bool(self._group.members())

    def _bears_a_mark(self, living: procfs.Living) -> bool:
        return living.token == self._token or (self.session_is_ours and living.session == self._leader)


class Orphans:
    """All living processes of a description, wherever they come from."""

    def __init__(self, scan: ProcessScan, wanted: Callable[[procfs.Living], bool]) -> None:
        self._scan, self._wanted = scan, wanted

    async def find(self) -> set[int]:
        return await self._scan.find(self._wanted)

    def include(self, pid: int) -> bool:
        living = procfs.living(pid)
        return living is not None and self._wanted(living)
