"""Writes down once a minute what each service that runs did in it, for the charts of the last day."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from ..errors import StorageError
from ..models import Instance, MinuteFigures, ServiceSpec, ServiceStatus

if TYPE_CHECKING:
    from .control_plane import ControlPlane

logger = logging.getLogger(__name__)

AT_ONCE = 1000
"""With more running services than that, each is measured only every second minute, or third, and so on: a day
is 1.4 million rows of some 40 bytes at most, however many they are."""
_BETWEEN_CHECKPOINTS = 100
_OVER = (ServiceStatus.ERROR, ServiceStatus.COMPLETED)


class MinuteLog:
    """Measures nothing itself: it takes what the supervisor, the gateway and the recorder know."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._restarts: dict[str, int] = {}  # by service id, when it was last looked at
        self._fails = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(60 - time.time() % 60)
            await self.write(int(time.time()) // 60 - 1)

    async def write(self, minute: int) -> None:
        """Writes a minute that has just ended."""
        specs = self._plane.registry.by_id
        running = {i.service_id for i in self._plane.supervisor.instances() if i.status not in _OVER}
        if minute % -(-len(running) // AT_ONCE or 1):
            return
        figures: dict[str, MinuteFigures] = {}
        for service_id in running & specs.keys():
            figures[service_id] = self._figures(specs[service_id], minute)
            if len(figures) % _BETWEEN_CHECKPOINTS == 0:
                await trio.lowlevel.checkpoint()
        self._restarts = {service_id: self._restarts[service_id] for service_id in figures}
        if not figures:
            return
        try:
            await self._plane.store.add_minute(minute, figures)
            self._fails = False
        except StorageError as error:
            if not self._fails:  # logged once; a minute that cannot be written is lost
                logger.warning("what services did in this minute cannot be written: %s", error)
            self._fails = True

    def _figures(self, spec: ServiceSpec, minute: int) -> MinuteFigures:
        plane, service_id = self._plane, spec.service_id
        instances = plane.supervisor.instances(service_id)
        since = datetime.fromtimestamp(minute * 60, UTC)
        used = [found for instance in instances if (found := self._used(instance, since)) is not None]
        sessions = plane.supervisor.sessions(service_id)
        first_byte = plane.recorder.first_bytes.before(service_id, minute + 1)
        restarts = plane.recorder.totals(service_id).restarts
        before = self._restarts.get(service_id, restarts)
        self._restarts[service_id] = restarts
        return MinuteFigures(
            connections=sum(plane.gateway.active_connections(i.instance_id) for i in instances),
            sessions=sum(sessions.values()) if sessions else None,
            cpu=sum(cpu for cpu, _ in used) if used else None,
            memory_bytes=sum(memory for _, memory in used) if used else None,
            first_byte_p50_s=first_byte.quantile(0.5),
            first_byte_p95_s=first_byte.quantile(0.95),
            restarts=max(0, restarts - before),
        )

    def _used(self, instance: Instance, since: datetime) -> tuple[float, int] | None:
        """CPU on average over the minute, as a fraction of one core, and memory at its end."""
        if instance.pid is None:
            return None
        samples = self._plane.supervisor.usage(instance.instance_id)
        recent = [sample for sample in samples[-10:] if sample.at >= since] or samples[-1:]
        if not recent:
            return None
        cpu = sum(sample.cpu_percent for sample in recent) / len(recent) / 100
        return cpu, recent[-1].memory_bytes
