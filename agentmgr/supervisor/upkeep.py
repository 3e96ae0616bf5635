"""Housekeeping while instances run: logs are kept within bounds, resource use is sampled.

inotify reports writes to a log, so a flood is noticed as it begins. No event reports memory use, so that is
sampled, for all instances in one pass, off the loop.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import trio
from attrs import Factory, define

from ..models import ServiceConfig, Usage, utc_now
from . import log_times, logs, procfs
from .writes import NOWHERE, Writes

log = logging.getLogger(__name__)

_LOGS_EVERY_S = (0.1, 1.0)  #: between looks at logs that were written to, and at all logs
_USAGE_EVERY_S = 10.0
USAGE_KEPT = 360
"""Samples per instance: an hour."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

_limiter = trio.CapacityLimiter(2)  # looking at logs does not wait for looking at processes


@define(eq=False)
class _Kept:
    pid: int
    log: Path
    config: ServiceConfig
    usage: deque[Usage] = Factory(lambda: deque(maxlen=USAGE_KEPT))
    measured: tuple[float, int] | None = None  #: seconds since boot, and clock ticks of CPU until then
    log_fails: bool = False
    file: logs.File | None = None  #: which it writes to; None when its output goes elsewhere
    seen: int | None = None  #: bytes in it when it last had its name
    noted: int | None = None  #: its length when the time was last noted
    mark: int = NOWHERE  #: of the log, in `Writes`


class Upkeep:
    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._disk_full = False
        self._kept: dict[str, _Kept] = {}
        self._astray: dict[logs.File, tuple[_Kept, logs.Astray]] = {}  # used by the thread that rotates
        self._writes = Writes()
        self._next_usage = -math.inf

    def watch(self, instance_id: str, pid: int, log: Path, config: ServiceConfig) -> None:
        """Begins at its launch; called again at each further launch."""
        kept = self._kept.setdefault(instance_id, _Kept(pid, log, config))
        kept.pid, kept.measured = pid, None
        kept.file, kept.seen = logs.written_by(pid, log), None
        before, kept.mark = kept.mark, self._watch(kept)
        self._let_go(before)
        self._next_usage = -math.inf  # its first figures should not take 10 s

    def forget(self, instance_id: str) -> None:
        gone = self._kept.pop(instance_id, None)
        if gone is not None:
            self._let_go(gone.mark)

    def _watch(self, kept: _Kept) -> int:
        # By its descriptor, because another file may have its name.
        return self._writes.watch(kept.log if kept.file is None else Path(f"/proc/{kept.pid}/fd/1"))

    def _let_go(self, mark: int) -> None:
        # In a rolling restart two instances write to the same log.
        if mark != NOWHERE and not any(kept.mark == mark for kept in self._kept.values()):
            self._writes.forget(mark)

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        """The samples of the last hour, oldest first."""
        kept = self._kept.get(instance_id)
        return tuple(kept.usage) if kept is not None else ()

    def troubles(self) -> tuple[str, ...]:
        """Faults that last now and end by themselves; for the user."""
        full = ("the disk is full: the oldest logs are removed",) if self._disk_full else ()
        unbounded = any(kept.log_fails for kept in self._kept.values())
        astray = (
            f"the log {kept.log} was removed or renamed while its service writes to it: what it writes is "
            "moved there until the service is restarted"
            for kept, _ in tuple(self._astray.values())
        )
        return (*full, *(("logs cannot be kept within their bounds",) if unbounded else ()), *astray)

    async def run(self) -> None:
        """Until cancelled."""
        self._writes.open()
        try:
            for kept in self._kept.values():
                kept.mark = self._watch(kept)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_logs_bounded)
                nursery.start_soon(self._keep_measuring)
        finally:
            self._writes.close()
            self._find_astray((), ())

    async def _keep_logs_bounded(self) -> None:
        soon_s, late_s = _LOGS_EVERY_S
        look_at_all = -math.inf
        while True:
            written: set[int] = set()
            with trio.move_on_at(look_at_all):
                written = await self._writes.wait()
            entries = tuple(self._kept.values())
            if trio.current_time() >= look_at_all:
                look_at_all = trio.current_time() + late_s
                await trio.to_thread.run_sync(self._make_room, limiter=_limiter)
            else:
                entries = tuple(kept for kept in entries if kept.mark in written)
            known = tuple(self._kept.values())
            await trio.to_thread.run_sync(self._find_astray, entries, known, limiter=_limiter)
            if await trio.to_thread.run_sync(_rotate, entries, limiter=_limiter):
                look_at_all = trio.current_time()  # perhaps a flood: look again, event or not
            await trio.sleep(soon_s)

    def _find_astray(self, entries: Iterable[_Kept], known: Iterable[_Kept]) -> None:
        """Finds logs of `entries` that have lost their names, and moves what is written to such files to the
        file that has the name now. Closes those that none of `known` writes to any more.
        """
        for kept in entries:
            if kept.file is None or kept.file in self._astray or logs.identity(kept.log) == kept.file:
                continue
            if (path := logs.moved_to(kept.pid, kept.file, kept.log, self._log_dir)) is not None:
                kept.log = path  # its service was renamed, and another one has the old name
                continue
            with suppress(OSError):  # it has just ended, or there is no descriptor left now
                self._astray[kept.file] = kept, logs.Astray(kept.pid, kept.file, kept.log, kept.seen)
                log.warning(
                    "%s was removed or renamed while its service runs; moving its output there", kept.log
                )
        writers = {kept.file for kept in known}
        for file, (kept, astray) in tuple(self._astray.items()):
            found_again = logs.identity(kept.log) == file
            try:
                if not found_again:
                    astray.move_on(kept.config.log_max_bytes)
            except OSError as error:
                _complain(kept, error)
            if found_again or file not in writers:
                astray.close()
                del self._astray[file]

    def _make_room(self) -> None:
        before = self._disk_full
        with suppress(OSError):  # there is no log yet
            self._disk_full = logs.make_room(self._log_dir)
        if self._disk_full and not before:
            log.warning("the disk is full; removing the oldest logs in %s", self._log_dir)

    async def _keep_measuring(self) -> None:
        while True:
            if trio.current_time() >= self._next_usage:
                with suppress(OSError):  # no descriptor left now; the figures can wait
                    await self.measure()
            await trio.sleep(_LOGS_EVERY_S[1])

    async def measure(self) -> None:
        """Takes one sample of each."""
        self._next_usage = trio.current_time() + _USAGE_EVERY_S
        kept = {entry.pid: entry for entry in self._kept.values()}
        await trio.to_thread.run_sync(_measure, kept, limiter=_limiter)


def _rotate(entries: Iterable[_Kept]) -> bool:
    """Rotates the logs that have grown too large; returns whether there was one."""
    rotated = False
    for kept in entries:
        try:
            _note_times(kept)
            rotated |= logs.rotate(kept.log, kept.config.log_max_bytes, kept.config.log_files)
            with suppress(FileNotFoundError):  # it was removed just now; `_find_astray` will see that
                stat = kept.log.stat()
                if (stat.st_dev, stat.st_ino) == kept.file:
                    kept.seen = stat.st_size
            kept.log_fails = False
        except OSError as error:
            _complain(kept, error)
    return rotated


def _note_times(kept: _Kept) -> None:
    with suppress(OSError):  # no log, or a full disk: the lines have no times then
        stat = kept.log.stat()
        if stat.st_size != kept.noted:
            log_times.note(kept.log, stat)
            kept.noted = stat.st_size


def _complain(kept: _Kept, error: OSError) -> None:
    if not kept.log_fails:  # logged once; it is retried each time
        log.warning("cannot rotate the log %s, retrying: %s", kept.log, error.strerror)
    kept.log_fails = True


def _measure(leaders: dict[int, _Kept]) -> None:
    families: dict[int, list[tuple[int, procfs.Stat]]] = {pid: [] for pid in leaders}
    orphans = os.getpid() == 1
    for pid in procfs.pids():
        stat = procfs.stat(pid)
        if stat is None:
            continue
        if stat.session in families and stat.lives:
            families[stat.session].append((pid, stat))
        if orphans and stat.state == "Z" and stat.parent == 1 and pid not in leaders:
            _reap(pid, stat)
    now, at = time.clock_gettime(time.CLOCK_BOOTTIME), utc_now()
    for leader, members in families.items():
        kept = leaders[leader]
        if not members:  # it has just ended
            continue
        ticks = sum(stat.cpu_ticks for _, stat in members)
        since, ticks_then = kept.measured or (min(s.start_ticks for _, s in members) / _TICKS_PER_S, 0)
        # A member that has ended takes its ticks along.
        percent = max(0, ticks - ticks_then) / _TICKS_PER_S / max(now - since, 1 / _TICKS_PER_S) * 100
        kept.measured = now, ticks
        kept.usage.append(
            Usage(
                at=at,
                cpu_percent=round(percent, 1),
                memory_bytes=sum(stat.resident_pages for _, stat in members) * procfs.PAGE_BYTES,
                processes=len(members),
                threads=sum(stat.threads for _, stat in members),
                open_files=sum(procfs.open_files(pid) for pid, _ in members),
            )
        )


def _reap(pid: int, stat: procfs.Stat) -> None:
    """As process 1, in a container, this process has to reap the orphans of instances."""
    if stat.session != os.getsid(0):  # else it is a process that we started for another purpose
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
