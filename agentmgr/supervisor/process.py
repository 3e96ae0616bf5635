"""One child process and all that it starts: noticing its exit, signalling it, ending it without remainder."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from select import POLLIN, poll

import trio
from attrs import define

from ..core.restart import Exit
from . import procfs

log = logging.getLogger("agentmgr.supervisor")

_KILL_PATIENCE_S = 10.0  #: a process in uninterruptible sleep dies when the disk lets it
_SWEEP_PATIENCE_S = 30.0
_SHORTAGE_PAUSE_S = 0.1

Wanted = Callable[[procfs.Living], bool]
Find = Callable[[Wanted], Awaitable[list[int]]]


class Census:
    """Who lives. Those who ask at the same time share one look, taken after they have all asked."""

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._next: _Look | None = None
        # Worker threads are shared by all of trio; forty busy ones delayed a spawn by 3.9 s (measured).
        self._limiter = trio.CapacityLimiter(1)

    async def find(self, wanted: Wanted, *, since_ticks: int = 0) -> list[int]:
        """Those that began no earlier: nobody is older than who started them."""
        look = self._next = self._next or _Look()
        look.since_ticks = min(look.since_ticks, since_ticks)
        async with self._turn:
            while look.living is None:
                self._next = None  # who comes from now on needs a later one
                try:
                    look.living = await trio.to_thread.run_sync(
                        procfs.census, look.since_ticks, limiter=self._limiter
                    )
                except OSError as error:  # no descriptor to be had for looking; one will be
                    log.warning("cannot look for processes, trying again: %s", error)
                    await trio.sleep(_SHORTAGE_PAUSE_S)
        return [living.pid for living in look.living if wanted(living)]


@define(eq=False)
class _Look:
    since_ticks: int = sys.maxsize
    living: list[procfs.Living] | None = None


class Process:
    """A session leader: our child, which is reaped here, or an adopted one, which is init's to reap."""

    def __init__(self, pid: int, token: str, census: Census) -> None:
        """Raises OSError when there is no such process or no descriptor to be had."""
        self.pid = pid
        self._token = token
        self._census = census
        stat = procfs.stat(pid)
        self.start_ticks = stat.start_ticks if stat is not None else 0
        self._ours_to_reap = stat is not None and stat.parent == os.getpid()
        self._pidfd = os.pidfd_open(pid)

    def exited(self) -> bool:
        """Whether the leader has; it may still be a zombie."""
        poller = poll()
        poller.register(self._pidfd, POLLIN)
        return bool(poller.poll(0))

    async def wait_exit(self) -> Exit:
        await trio.lowlevel.wait_readable(self._pidfd)
        return self._exit()

    def _exit(self) -> Exit:
        """Looks how it ended and leaves the zombie: while it is there, the group keeps its number."""
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # init's child by now, or reaped by somebody else in this process
            return Exit()
        if result is None:
            return Exit()
        if result.si_code == os.CLD_EXITED:
            return Exit(code=result.si_status)
        return Exit(signal=result.si_status)

    async def holds(self, inode: int) -> bool:
        """Whether the leader, or whatever it has started, has this socket open."""
        if procfs.holds(self.pid, inode):
            return True
        return any(procfs.holds(pid, inode) for pid in await self._find(self._of_session_or_token))

    async def end(self, grace_s: float) -> Exit:
        """TERM, CONT, wait, KILL, sweep, reap, in this order; see `Child.end`."""
        # The group's number is good as long as its leader is not reaped. Init reaps an adopted one at once.
        pinned = self._ours_to_reap or not self.exited()
        belongs = self._of_session_or_token if pinned else self._of_token
        if not self.exited():
            self._signal_group(signal.SIGTERM)
            self._signal_group(signal.SIGCONT)  # one that is stopped would not hear the TERM
            with trio.move_on_after(grace_s, shield=True):
                await self.wait_exit()
                await _ask_and_wait(self._find, belongs)
        if self._ours_to_reap or not self.exited():
            self._signal_group(signal.SIGKILL)
        with trio.move_on_after(_KILL_PATIENCE_S, shield=True):
            await self.wait_exit()
        exit = self._exit()
        with trio.move_on_after(_SWEEP_PATIENCE_S, shield=True):
            await kill_all(self._find, belongs)
        self.release()
        return exit

    def release(self) -> None:
        """Reaps it if it has ended, and forgets it."""
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
        if self._ours_to_reap:
            _reap(self.pid)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # gone; or has become somebody else's by setuid
            os.killpg(self.pid, number)

    async def _find(self, wanted: Wanted) -> list[int]:
        return await self._census.find(wanted, since_ticks=self.start_ticks)

    def _of_token(self, living: procfs.Living) -> bool:
        return living.token == self._token

    def _of_session_or_token(self, living: procfs.Living) -> bool:
        return living.session == self.pid or living.token == self._token


async def kill_all(find: Find, wanted: Wanted) -> int:
    """Kills what is `wanted` until nothing is, also what has left its group and session; returns how many.

    Something that forks on and on is outrun, because what is killed forks no more.
    """
    count = 0
    while found := await find(wanted):
        killed = [pid for pid in found if _signal(pid, wanted, signal.SIGKILL)]
        count += len(killed)
        await _wait_all_gone(killed)
        for pid in killed:  # an earlier supervisor in this very process may have been its parent
            _reap(pid)
    return count


async def _ask_and_wait(find: Find, wanted: Wanted) -> None:
    """Workers have as long as their leader to end; those that left its group have not heard the TERM yet."""
    told: set[int] = set()
    while found := await find(wanted):
        for pid in set(found) - told:
            _signal(pid, wanted, signal.SIGTERM)
        told.update(found)
        await _wait_all_gone(found)


def _signal(pid: int, wanted: Wanted, number: signal.Signals) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Only now is it certain whom the number means.
        stat = procfs.stat(pid)
        if stat is None or not wanted(procfs.Living(pid, stat.session, procfs.token(pid))):
            return False
        signal.pidfd_send_signal(pidfd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(pidfd)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


async def _wait_all_gone(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        except OSError:  # without a descriptor, a moment has to do; whoever calls looks again
            await trio.sleep(_SHORTAGE_PAUSE_S)
            continue
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
