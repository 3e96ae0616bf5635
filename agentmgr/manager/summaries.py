"""One short row for each service: what a table of thousands shows, sorts and counts by.

A row is plain data, made anew only when its service has changed, so that to look at all costs little: 10,000
that rest take 2 ms.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import trio

from ..core import scaling, schedule
from ..core.view import overall_health, overall_status, started_at
from ..models import HealthStatus, JobState, ServiceSpec, ServiceStatus
from ..supervisor import Supervisor
from .registry import Registry

Row = dict[str, Any]

ERROR_CHARS = 300
COMMAND_CHARS = 100
_AT_ONCE = 500  #: rows between two checkpoints: some 5 ms


class Summaries:
    """The rows of all services. What `rows` returns is as it was at the last `refresh`."""

    def __init__(
        self,
        registry: Registry,
        supervisor: Supervisor,
        taken: Callable[[], Mapping[str, int]],
        changed: Callable[[], set[str]],
        job: Callable[[str], JobState],
        next_run: Callable[[ServiceSpec], datetime | None],
    ) -> None:
        """`taken`: connections, by instance id. `changed`: the ids of the services whose instances or runs
        have changed since it was last called. `job`: what is known of a service's runs.
        """
        self._job, self._next_run = job, next_run
        self._registry, self._supervisor = registry, supervisor
        self._taken, self._changed = taken, changed
        self._rows: dict[str, Row] = {}
        self._specs: dict[str, ServiceSpec] = {}
        self._service_of: dict[str, str] = {}  # by instance id, of those that have connections
        self._connected: set[str] = set()  # ids of services that had connections at the last refresh

    @property
    def rows(self) -> Mapping[str, Row]:
        """By service id. A row that has changed is another object."""
        return self._rows

    async def refresh(self) -> Mapping[str, Row]:
        """Brings `rows` up to date, and returns them."""
        connections = self._connections()
        stale = self._changed() | connections.keys() | self._connected
        self._connected = set(connections)
        specs = self._registry.by_id
        made = 0
        for service_id, spec in tuple(specs.items()):
            if spec is not self._specs.get(service_id) or service_id in stale:
                row = self._row(spec, connections[service_id])
                self._specs[service_id] = spec
                if row != self._rows.get(service_id):
                    self._rows[service_id] = row
                made += 1
                if made % _AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
        for gone in self._rows.keys() - specs.keys():
            del self._rows[gone], self._specs[gone]
        return self._rows

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many are in each status, and in each health."""
        statuses, healths = (
            Counter(row[name] for row in self._rows.values()) for name in ("status", "health")
        )
        total = {"total": len(self._rows)}
        return (
            {**total, **{str(status): statuses[status] for status in ServiceStatus}},
            {**total, **{str(health): healths[health] for health in HealthStatus}},
        )

    def _connections(self) -> Counter[str]:
        taken = self._taken()
        if taken.keys() - self._service_of.keys():
            self._service_of = {i.instance_id: i.service_id for i in self._supervisor.instances()}
        counts = Counter[str]()
        for instance_id, count in taken.items():
            if (service_id := self._service_of.get(instance_id)) is not None:
                counts[service_id] += count
        return counts

    def _row(self, spec: ServiceSpec, connections: int) -> Row:
        config = spec.config
        # One that has stopped is about to be dropped.
        instances = [
            i for i in self._supervisor.instances(spec.service_id) if i.status is not ServiceStatus.STOPPED
        ]
        error = next((i.error_message for i in instances if i.error_message), None)
        began = started_at(instances)
        job = self._job(spec.service_id)
        status, why = schedule.status(spec, overall_status(instances), job)
        error, next_run = error or why, self._next_run(spec)
        again = min((i.next_restart_at for i in instances if i.next_restart_at), default=None)
        return {
            "service_id": spec.service_id,
            "name": spec.name,
            "description": spec.description,
            "status": str(status),
            "desired_status": str(spec.desired_status),
            "health": str(overall_health(instances)),
            "error_message": None if error is None else _in_one_line(error),
            "instances": scaling.wanted(config, instances),
            "ready": sum(i.status is ServiceStatus.RUNNING for i in instances),
            "connections": connections,
            "restart_count": sum(i.restart_count for i in instances),
            "next_restart_at": None if again is None else again.isoformat(),
            "started_at": None if began is None else began.isoformat(),
            "next_run_at": None if next_run is None else next_run.isoformat(),
            "last_result": None if job.last is None else job.last.result and str(job.last.result),
            "tags": sorted(spec.tags),
            "agent_factory_path": config.agent_factory_path,
            "command": shlex.join(config.command)[:COMMAND_CHARS] if config.command else None,
            "port": spec.port or next((i.port for i in instances if i.port), None),
            "version": spec.version,
        }


def _in_one_line(error: str) -> str:
    """The first line of a message, and the last one, which of a traceback says most."""
    first, *_, last = lines if len(lines := error.split("\n")) > 1 else (error, "")
    if not last or len(first) + len(last) + 3 > ERROR_CHARS:
        first, last = first[: ERROR_CHARS // 2] if last else first[:ERROR_CHARS], last[: ERROR_CHARS // 2 - 3]
    return f"{first} … {last}" if last else first
