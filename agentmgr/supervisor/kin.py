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
from .lifeline import Lifeline
from .threads import in_thread

log = logging.getLogger("agentmgr.supervisor")

SHORTAGE_PAUSE_S = 0.1

# Worker threads are shared by all of trio; forty busy ones delayed a spawn by 3.9 s (measured).
_limiter = trio.CapacityLimiter(1)


class Relatives(Protocol):
    """Some processes, as of now: each may have ended a moment later, and its number be another's."""

    async def find(self) -> set[int]: ...

    def include(self, pid: int) -> bool:
        """Asked again once a pidfd is open, when the pid cannot be another process's any more."""


class Census:
    """The living processes. Concurrent callers share one scan, taken after all of them have asked."""

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._next: _Look | None = None

    async def find(self, wanted: Callable[[procfs.Living], bool], *, since_ticks: int = 0) -> set[int]:
        """Those that began no earlier: nobody is older than who started them."""
        look = self._next = self._next or _Look()
        look.since_ticks = min(look.since_ticks, since_ticks)
        async with self._turn:
            while look.living is None:
                self._next = None  # who comes from now on needs a later one
                try:
                    look.living = await in_thread(procfs.census, look.since_ticks, limiter=_limiter)
                except OSError as error:  # no descriptor to be had for looking; one will be
                    log.warning("cannot look for processes, trying again: %s", error)
                    await trio.sleep(SHORTAGE_PAUSE_S)
        return {living.pid for living in look.living if wanted(living)}


@define(eq=False)
class _Look:
    since_ticks: int = sys.maxsize
    living: list[procfs.Living] | None = None


class Kin:
    """The processes of one instance."""

    def __init__(
        self,
        leader: int,
        token: str,
        start_ticks: int,
        census: Census,
        group: ControlGroup,
        lifeline: Lifeline,
    ) -> None:
        self._leader, self._token, self._start_ticks = leader, token, start_ticks
        self._census, self._group, self._lifeline = census, group, lifeline
        self.session_is_ours = True  #: false once its number may be another's

    @classmethod
    def left_behind(cls, census: Census, group: ControlGroup, lifeline: Lifeline) -> Kin:
        """The rest of an instance whose leader is gone and whose token is not known."""
        kin = cls(0, "", 0, census, group, lifeline)
        kin.session_is_ours = False
        return kin

    async def find(self) -> set[int]:
        found = await self._census.find(self._told, since_ticks=self._start_ticks) | self._group.members()
        if not found and self._lifeline.held():
            found = await in_thread(self._lifeline.holders, limiter=_limiter)
        return found

    def include(self, pid: int) -> bool:
        living = procfs.living(pid)
        return living is not None and (
            self._told(living) or self._group.has(pid) or self._lifeline.holds(pid)
        )

    def kill(self) -> None:
        """Kills all of them at once, if they have a control group; else does nothing."""
        self._group.kill()

    def live(self) -> bool:
        """Whether any process of it lives, even one that we cannot identify."""
        return self._lifeline.held() or bool(self._group.members())

    def _told(self, living: procfs.Living) -> bool:
        return living.token == self._token or (self.session_is_ours and living.session == self._leader)


class Strays:
    """All living processes of a description, wherever they come from."""

    def __init__(self, census: Census, wanted: Callable[[procfs.Living], bool]) -> None:
        self._census, self._wanted = census, wanted

    async def find(self) -> set[int]:
        return await self._census.find(self._wanted)

    def include(self, pid: int) -> bool:
        living = procfs.living(pid)
        return living is not None and self._wanted(living)
