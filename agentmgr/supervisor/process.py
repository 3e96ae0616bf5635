"""One process, and an instance's with its descendants: notice its exit, signal it, end all of them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from select import POLLIN, poll

import trio

from ..core.restart import Exit
from . import listening_sockets, pidfds, procfs
from .cgroup import ControlGroup
from .descendants import SHORTAGE_PAUSE_S, Descendants, ProcessScan, ProcessSet
from .instance_lock import InstanceLock

log = logging.getLogger("agentmgr.supervisor")

_KILL_PATIENCE_S = 10.0  #: a process in uninterruptible sleep dies when the disk lets it
_SWEEP_PATIENCE_S = 30.0


class Leader:
    """A session leader: our child, reaped here, or an adopted process, which init reaps."""

    def __init__(self, pid: int) -> None:
        """Raises OSError when there is no such process or no descriptor to be had."""
        self.pid = pid
        stat = procfs.stat(pid)
        self.start_ticks = stat.start_ticks if stat is not None else 0
        self._ours_to_reap = stat is not None and stat.parent == os.getpid()
        self._grace = trio.CancelScope(shield=True)
        self._pidfd = os.pidfd_open(pid)
        self._seen_to_exit = self._is_watched = False
        self._news = trio.lowlevel.ParkingLot()

    def exited(self) -> bool:
        """Whether the leader has; it may still be a zombie."""
        poller = poll()
        poller.register(self._pidfd, POLLIN)
        return bool(poller.poll(0))

    async def wait_gone(self) -> None:
        """Returns when it has exited, whatever has become of its descriptor; for several tasks at once."""
        await trio.lowlevel.checkpoint()
        while not self._seen_to_exit:
            if self._is_watched:  # trio lets one task wait for a descriptor
                await self._news.park()
                continue
            self._is_watched = True
            try:
                await trio.lowlevel.wait_readable(self._pidfd)
                self._seen_to_exit = True
            finally:
                self._is_watched = False
                self._news.unpark_all()

    async def wait_exit(self) -> Exit:
        await self.wait_gone()
        return self._exit() if self._ours_to_reap else await pidfds.foreign_exit(self._pidfd)

    def _exit(self) -> Exit:
        """Reads how it ended and leaves the zombie, so that its process group id is not reused."""
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # init's child by now, or reaped by other code in this process
            return pidfds.known_exit(self._pidfd)
        if result is None:
            return Exit()
        if result.si_code == os.CLD_EXITED:
            return Exit(code=result.si_status)
        return Exit(signal=result.si_status)

    async def end(self, grace_s: float) -> Exit:
        """TERM, CONT, wait, KILL, reap, in this order. Shielded from cancellation."""
        await self._ask(signal.SIGTERM, grace_s, self.wait_exit)
        self._kill_group()
        exit = await self._killed()
        self.release()
        return exit

    async def _ask(self, how: signal.Signals, grace_s: float, wait: Callable[[], Awaitable[object]]) -> None:
        if not self.exited():
            self._signal_group(how)
            self._signal_group(signal.SIGCONT)  # a suspended process does not get the signal
            self._grace.deadline = trio.current_time() + grace_s
            with self._grace:
                await wait()

    def _kill_group(self) -> None:
        # The id of its process group is valid until the leader is reaped; init reaps an adopted one at once.
        if self._ours_to_reap or not self.exited():
            self._signal_group(signal.SIGKILL)

    async def _killed(self) -> Exit:
        with trio.move_on_after(_KILL_PATIENCE_S, shield=True):
            await self.wait_exit()
        return self._exit()

    def kill(self) -> None:
        """Ends the wait of `end` between TERM and KILL, now or in advance."""
        self._grace.cancel()

    def release(self) -> None:
        """Reaps it if it has ended, and closes its descriptor."""
        self._seen_to_exit = True  # or it is left to another manager, and nothing here waits for it any more
        trio.lowlevel.notify_closing(self._pidfd)
        os.close(self._pidfd)
        if self._ours_to_reap:
            _reap(self.pid)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # gone; or it runs as another user by setuid
            os.killpg(self.pid, number)


class Process(Leader):
    """An instance's: it may have descendants."""

    def __init__(
        self,
        pid: int,
        token: str,
        scan: ProcessScan,
        group: ControlGroup,
        lock: InstanceLock,
        *,
        stop_signal: str = "SIGTERM",
    ) -> None:
        """Raises OSError as above."""
        super().__init__(pid)
        self._stop_signal = signal.Signals[stop_signal]
        self._descendants = Descendants(pid, token, self.start_ticks, scan, group, lock)

    def includes(self, pid: int) -> bool:
        """Whether that process is it or one of its descendants."""
        try:
            return self._descendants.include(pid)
        except OSError:  # it cannot be read
            return False

    async def holds(self, inode: int) -> bool:
        """Whether the leader or a descendant has this socket open."""
        if procfs.holds(self.pid, inode):
            return True
        return any(procfs.holds(pid, inode) for pid in await self._descendants.find())

    async def listens_on(self) -> list[int]:
        """The ports that the leader or a descendant listens on. Raises OSError."""
        ports = listening_sockets.ports()
        pids = {self.pid, *await self._descendants.find()}
        return sorted(
            {port for inode, port in ports.items() if any(procfs.holds(pid, inode) for pid in pids)}
        )

    async def end(self, grace_s: float) -> Exit:
        """TERM (or another signal), CONT, wait, KILL, sweep, reap, in this order; see `Child.end`."""
        self._descendants.session_is_ours = self._ours_to_reap or not self.exited()
        await self._ask(self._stop_signal, grace_s, self._wait_all)
        self._kill_group()
        self._descendants.kill()
        exit = await self._killed()
        with trio.move_on_after(_SWEEP_PATIENCE_S, shield=True):
            await kill_all(self._descendants)
        if self._descendants.live():
            log.warning("a process that process %d has started does not end; giving up on it", self.pid)
        self.release()
        return exit

    async def _wait_all(self) -> None:
        await self.wait_exit()
        await _ask_and_wait(self._descendants, self._stop_signal)


async def kill_all(processes: ProcessSet) -> int:
    """Kills until none is left, also those that have left the group and session; returns how many it killed.

    It outruns a fork bomb, because a killed process forks no more.
    """
    count = 0
    while found := await processes.find():
        killed = [pid for pid in found if _signal(pid, processes, signal.SIGKILL)]
        count += len(killed)
        await _wait_all_gone(killed)
        for pid in killed:  # an earlier supervisor in this very process may have been its parent
            _reap(pid)
    return count


async def _ask_and_wait(processes: ProcessSet, how: signal.Signals) -> None:
    """Waits for the leader's descendants; signals those that left its group and have not had the signal."""
    signalled: set[int] = set()
    while found := await processes.find():
        for pid in found - signalled:
            _signal(pid, processes, how)
        signalled |= found
        await _wait_all_gone(found)


def _signal(pid: int, processes: ProcessSet, number: signal.Signals) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not processes.include(pid):
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
        except OSError:  # without a descriptor, wait a moment; the caller looks again
            await trio.sleep(SHORTAGE_PAUSE_S)
            continue
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
