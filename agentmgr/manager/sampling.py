"""Figures of this moment, once a second, for those who look on: for the console.

One task takes them for all viewers, and rests while there is none. What it measures of processes and reads of
journals, it does in one call of a thread, and only for what a viewer has on its screen.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from attrs import Factory, define, frozen

from ..core import schedule
from ..core.recent import minute_of
from ..core.stats import percentiles
from ..core.view import overall_health, overall_status
from ..errors import StorageError
from ..journal.archive import ArchiveFigures
from ..journal.sqlite_archive import figures as figures_of
from ..models import Instance, ServiceSpec, utc_now
from ..supervisor import procfs
from .summaries import Row, Summaries

if TYPE_CHECKING:
    from .control_plane import ControlPlane

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
OVERVIEW, SERVICES = "overview", "services"  #: what a viewer may ask for, besides the ids of services

_MIN_SPAN_S = 0.5  #: CPU time comes in ticks of 10 ms: over less it would say little
_SCAN_EVERY_S = 5.0  #: between looks for new processes of the instances: it takes a look at all there are
_TOTALS_EVERY_S = 10.0  #: as often as the supervisor measures all instances
_LOOKS = 200  #: journals that are looked at in a second, in turn; a look takes 5 µs
_READING_S = (0.2, 0.004)  #: for journals in one call: while some were never read, and after that

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@define
class _Process:
    """What the processes of one instance use."""

    ticks: dict[int, int]  #: by pid
    at: float  #: monotonic; when `ticks` were read
    cpu: float | None  #: as a fraction of one core
    memory_bytes: int


@define
class _Journal:
    """What is in the journal of one service."""

    path: str
    stamp: tuple[int, ...]  #: tells one state of it from another
    sessions: int = 0
    questions: int = 0


@frozen
class Sample:
    at: str
    overview: dict[str, Any] | None  #: None: no viewer asked
    figures: Mapping[str, dict[str, Any] | None]  #: by service id; None: there is no such service


@define(eq=False)
class Viewer:
    """One who looks on. It gets the newest sample when it asks for one; those in between are dropped."""

    wants: frozenset[str]
    samples: trio.MemoryReceiveChannel[Sample]
    _summaries: Summaries
    _known: dict[str, Row] = Factory(dict)
    _fresh: bool = True

    def changed_services(self) -> dict[str, Any] | None:
        """The rows that have changed since this was last called; None: none has. The first time: all."""
        rows, known = self._summaries.rows, self._known
        changed = [row for service_id, row in rows.items() if row is not known.get(service_id)]
        gone = list(known.keys() - rows.keys())
        if not (changed or gone or self._fresh):
            return None
        news = {"rows": changed, "gone": gone, **({"all": True} if self._fresh else {})}
        self._known, self._fresh = dict(rows), False
        return news

    def shown(self, sample: Sample) -> dict[str, Any]:
        """What this viewer asked for, as JSON takes it."""
        shown: dict[str, Any] = {"at": sample.at}
        if OVERVIEW in self.wants:
            shown["overview"] = sample.overview
        if SERVICES in self.wants and (changed := self.changed_services()) is not None:
            shown["services"] = changed
        if ids := self.wants - {OVERVIEW, SERVICES}:
            shown["figures"] = {service_id: sample.figures.get(service_id) for service_id in sorted(ids)}
        return shown


class Sampler:
    """Takes samples while there are viewers."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane, self._summaries = plane, plane.summaries
        self._viewers: dict[Viewer, trio.MemorySendChannel[Sample]] = {}
        self._arrived = trio.Event()
        self._processes: dict[int, _Process] = {}  # by pid of the leader; used by the thread, too
        self._members: dict[int, list[int]] = {}  # pids, by that of their leader
        self._scan_due = 0.0
        self._journals: dict[str, _Journal] = {}
        self._next_journal = 0
        self._totals: tuple[float | None, int | None] = (None, None)
        self._totals_due = 0.0
        self._limiter = trio.CapacityLimiter(1)
        self._began = trio.current_time()

    @contextmanager
    def subscribe(self, wants: Iterable[str]) -> Iterator[Viewer]:
        """A sample comes at once, and then one each second. `wants`: `overview`, `services`, and the ids of
        services.
        """
        send, receive = trio.open_memory_channel[Sample](1)
        viewer = Viewer(frozenset(wants), receive, self._summaries)
        self._viewers[viewer] = send
        self._arrived.set()
        with send, receive:
            try:
                yield viewer
            finally:
                del self._viewers[viewer]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not self._viewers:
                self._processes.clear()
                self._arrived = trio.Event()
                await self._arrived.wait()
            self._arrived = trio.Event()
            try:
                await self._sample()
            except Exception:  # the boundary: a fault in figures must not end the manager
                logger.exception("internal error: no figures for the console; trying again")
            with trio.move_on_after(INTERVAL_S):
                await self._arrived.wait()

    async def _sample(self) -> None:
        wants = frozenset[str]().union(*(viewer.wants for viewer in self._viewers))
        overview, by_id = OVERVIEW in wants, self._plane.registry.by_id
        specs = [by_id[service_id] for service_id in wants if service_id in by_id]
        if overview or SERVICES in wants:
            await self._summaries.refresh()
        instances = {spec.service_id: self._plane.supervisor.instances(spec.service_id) for spec in specs}
        # One of another node is measured there.
        leaders = {
            i.pid for found in instances.values() for i in found if i.pid is not None and not i.node_id
        }
        journals = self._some_journals() if overview else ()
        await trio.to_thread.run_sync(self._measure, leaders, os.getpid(), journals, limiter=self._limiter)
        sample = Sample(
            utc_now().isoformat(),
            self._overview() if overview else None,
            {spec.service_id: self._figures(spec, instances[spec.service_id]) for spec in specs},
        )
        for send in tuple(self._viewers.values()):
            with suppress(trio.WouldBlock):  # a slow viewer: what it has not taken is out of date
                send.send_nowait(sample)

    # In a thread

    def _measure(self, leaders: Set[int], me: int, journals: Iterable[tuple[str, str]]) -> None:
        now = time.monotonic()
        if now >= self._scan_due or not leaders <= self._members.keys():
            self._members, self._scan_due = procfs.members(leaders), now + _SCAN_EVERY_S
        found = {pid: _stats(pid, self._members[pid]) for pid in leaders}
        own = procfs.stat(me)
        if own is not None:
            found[me] = [own]
        for gone in self._processes.keys() - found.keys():
            del self._processes[gone]
        for pid, members in found.items():
            self._note(pid, members, now)
        self._read_journals(journals)

    def _note(self, pid: int, members: Collection[procfs.Stat], now: float) -> None:
        if not members:
            self._processes.pop(pid, None)
            return
        ticks = {stat.pid: stat.cpu_ticks for stat in members}
        memory_bytes = sum(stat.resident_pages for stat in members) * _PAGE_BYTES
        before = self._processes.get(pid)
        if before is None:
            self._processes[pid] = _Process(ticks, now, None, memory_bytes)
            return
        before.memory_bytes = memory_bytes
        if now - before.at >= _MIN_SPAN_S:
            # A member that is new may be seconds old; one that has ended takes its ticks along.
            used = sum(count - before.ticks.get(pid, count) for pid, count in ticks.items())
            before.cpu = used / _TICKS_PER_S / (now - before.at)
            before.ticks, before.at = ticks, now

    def _read_journals(self, journals: Iterable[tuple[str, str]]) -> None:
        began = time.monotonic()
        for service_id, path in journals:
            known = self._journals.get(service_id)
            patience_s = _READING_S[0] if known is None else _READING_S[1]
            if time.monotonic() - began > patience_s:
                return
            stamp = _stamp(path)
            if known is None or stamp != known.stamp:
                try:
                    figures = figures_of(Path(path))
                except StorageError:  # whoever opens its sessions hears why
                    figures = ArchiveFigures()
                self._journals[service_id] = _Journal(path, stamp, figures.sessions, figures.questions)

    # In the loop

    def _some_journals(self) -> list[tuple[str, str]]:
        specs = self._plane.registry.by_id
        for gone in self._journals.keys() - specs.keys():
            del self._journals[gone]
        known = list(self._journals.items())
        begin = self._next_journal if self._next_journal < len(known) else 0
        self._next_journal = begin + _LOOKS
        journal = self._plane.sessions.journal
        unread = [(key, str(journal(spec))) for key, spec in specs.items() if key not in self._journals]
        return unread + [(key, one.path) for key, one in known[begin : begin + _LOOKS]]

    def _overview(self) -> dict[str, Any]:
        plane = self._plane
        statuses, healths = self._summaries.counts()
        read = len(self._journals) == statuses["total"]
        journals: tuple[_Journal | ArchiveFigures, ...] = (
            *self._journals.values(),
            *plane.network.figures().values(),
        )
        cpu, memory_bytes = self._totals_of_all()
        me = self._processes.get(os.getpid())
        return {
            "services": statuses,
            "health": healths,
            "connections": sum(plane.gateway.lobby.live.values()),
            "sessions": sum(plane.supervisor.sessions().values()),
            "stored_sessions": sum(j.sessions for j in journals) if read else None,
            "questions": sum(j.questions for j in journals) if read else None,
            "refusals": dict(plane.recorder.figures.refusals),
            "cpu": cpu,
            "memory_bytes": memory_bytes,
            "manager": {
                "pid": os.getpid(),
                "cpu": None if me is None or me.cpu is None else round(me.cpu, 4),
                "memory_bytes": None if me is None else me.memory_bytes,
                "uptime_s": round(trio.current_time() - self._began),
            },
            "restarts": plane.recorder.restarts(),
            "degraded": "; ".join(plane.troubles()) or None,
        }

    def _totals_of_all(self) -> tuple[float | None, int | None]:
        """CPU and memory of all instances."""
        if trio.current_time() >= self._totals_due:
            usage = [
                used for used in map(self._plane.latest_usage, self._plane.supervisor.instances()) if used
            ]
            cpu = round(sum(used.cpu_percent for used in usage) / 100, 4)
            self._totals = (cpu, sum(used.memory_bytes for used in usage)) if usage else (None, None)
            self._totals_due = trio.current_time() + (_TOTALS_EVERY_S if usage else INTERVAL_S)
        return self._totals

    def _figures(self, spec: ServiceSpec, instances: Collection[Instance]) -> dict[str, Any]:
        sessions = self._plane.supervisor.sessions(spec.service_id)
        shown = [self._instance(instance, sessions) for instance in instances]
        first_byte = self._plane.recorder.first_bytes.last(spec.service_id, minute_of(utc_now()))
        job = self._plane.jobs.state(spec.service_id)
        return {
            "status": str(schedule.status(spec, overall_status(instances), job)[0]),
            "desired_status": str(spec.desired_status),
            "health": str(overall_health(instances)),
            "version": spec.version,
            "connections": sum(one["connections"] for one in shown),
            "sessions": sum(sessions.values()) if sessions else None,
            "cpu": _sum(one["cpu"] for one in shown),
            "memory_bytes": _sum(one["memory_bytes"] for one in shown),
            "restart_count": sum(instance.restart_count for instance in instances),
            "restarts": self._plane.recorder.totals(spec.service_id).restarts,
            "first_byte": percentiles(first_byte),
            "instances": shown,
        }

    def _instance(self, instance: Instance, sessions: Mapping[str, int]) -> dict[str, Any]:
        here = instance.pid if not instance.node_id else None
        used = None if here is None else self._processes.get(here)
        cpu = None if used is None else used.cpu
        if cpu is None and (last := self._plane.latest_usage(instance)) is not None:
            cpu = last.cpu_percent / 100
        return {
            "slot": instance.slot,
            "instance_id": instance.instance_id,
            "status": str(instance.status),
            "health": str(instance.health),
            "node": instance.node,
            "gpus": list(instance.gpus),
            "pid": instance.pid,
            "port": instance.port,
            "spec_version": instance.spec_version,
            "started_at": None if instance.started_at is None else instance.started_at.isoformat(),
            "restart_count": instance.restart_count,
            "next_restart_at": instance.next_restart_at and instance.next_restart_at.isoformat(),
            "cpu": None if cpu is None else round(cpu, 4),
            "memory_bytes": None if used is None else used.memory_bytes,
            "connections": self._plane.gateway.active_connections(instance.instance_id),
            "sessions": sessions.get(instance.instance_id),
            "error_message": instance.error_message,
            "said": instance.said,
            "last_exit": instance.last_exit,
        }


def _stats(leader: int, pids: Iterable[int]) -> list[procfs.Stat]:
    found: list[procfs.Stat] = []
    for pid in pids:
        with suppress(OSError):  # it cannot be looked at just now
            stat = procfs.stat(pid)
            if stat is not None and stat.session == leader and stat.lives:
                found.append(stat)
    return found


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 4) if known else None


def _stamp(journal: str) -> tuple[int, ...]:
    """What is written goes to the log beside the journal first; none is there while no host runs."""
    for path in (f"{journal}-wal", journal):
        try:
            stat = os.stat(path)
        except OSError:
            continue
        return stat.st_ino, stat.st_size, stat.st_mtime_ns
    return ()
