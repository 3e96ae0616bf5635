"""Figures: what is counted while services run, and what `stats` shows of it.

`…_stats` and `health_summary` return plain, JSON-ready data. `counted` adds a fact to its service's totals.
`Histogram` is what Prometheus reads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

from attrs import evolve

from ..models import (
    ConnectionEnd,
    ConnectionPeak,
    Event,
    Fact,
    HealthCheck,
    HealthStatus,
    InstanceEnd,
    Latency,
    Service,
    ServiceStatus,
    ServiceTotals,
    Usage,
)


class Relayed(Protocol):
    """What a connection has relayed (`Connection`, and what stands for one)."""

    @property
    def bytes_from_client(self) -> int: ...
    @property
    def bytes_to_client(self) -> int: ...


Counts = Mapping[tuple[str, str], int]
"""How many connections there are, by the name of their service and the id of their instance."""


def system_stats(
    services: Sequence[Service], connections: Counts, *, troubles: Sequence[str] = ()
) -> dict[str, Any]:
    """`{services, connections, health, instances, troubles}`."""
    return {
        "services": {"total": len(services), **_count(ServiceStatus, (s.status for s in services))},
        "connections": connection_stats(services, connections),
        "health": health_summary(services),
        "instances": {
            "total": sum(len(service.instances) for service in services),
            **_count(ServiceStatus, (i.status for service in services for i in service.instances)),
        },
        "troubles": list(troubles),
    }


def connection_stats(services: Sequence[Service], connections: Counts) -> dict[str, Any]:
    """Open connections: `{total_connections, by_status, by_service}`; a service without any shows 0."""
    by_service = {service.name: 0 for service in services}
    for (name, _), count in connections.items():
        by_service[name] = by_service.get(name, 0) + count
    draining = {
        instance.instance_id
        for service in services
        for instance in service.instances
        if instance.status is ServiceStatus.DRAINING
    }
    total = sum(connections.values())
    leaving = sum(count for (_, instance_id), count in connections.items() if instance_id in draining)
    return {
        "total_connections": total,
        "by_status": {"active": total - leaving, "draining": leaving},
        "by_service": by_service,
    }


def health_summary(services: Sequence[Service]) -> dict[str, int]:
    """How many services are in each health; one that does not run is `unknown`."""
    return {"total": len(services), **_count(HealthStatus, (service.health for service in services))}


def service_stats(
    service: Service,
    totals: ServiceTotals,
    *,
    now: datetime,
    live: Collection[Relayed] = (),
    usage: Mapping[str, Sequence[Usage]] = MappingProxyType({}),
) -> dict[str, Any]:
    """One service: what it did ever (kept across restarts of the manager), and its `live` connections."""
    finished, active = totals.sessions_total, service.active_sessions
    return {
        "service_id": service.service_id,
        "name": service.name,
        "status": service.status,
        "connections": {
            "total": finished + active,
            "active": active,
            "peak": max(totals.sessions_peak, active),
        },
        "sessions": {
            "total": finished + active,
            "active": active,
            "completed": finished - totals.sessions_failed,
            "failed": totals.sessions_failed,
            "average_duration_s": totals.session_seconds / finished if finished else None,
        },
        "response_time": {
            "handshake": percentiles(totals.handshake),
            "first_byte": percentiles(totals.first_byte),
        },
        "bytes": {
            "from_client": totals.bytes_from_client + sum(c.bytes_from_client for c in live),
            "to_client": totals.bytes_to_client + sum(c.bytes_to_client for c in live),
        },
        "restarts": totals.restarts,
        "errors": totals.errors,
        "last_run": service.last_run,
        "uptime_s": (now - service.started_at).total_seconds() if service.started_at else None,
        "usage": _together([_used(samples) for samples in usage.values()]),
        "instances": [
            {
                "instance_id": i.instance_id,
                "slot": i.slot,
                "status": i.status,
                "pid": i.pid,
                "journal_degraded": i.journal_degraded,
                "usage": _used(usage.get(i.instance_id, ())),
            }
            for i in service.instances
        ],
    }


def _used(samples: Sequence[Usage]) -> dict[str, Any] | None:
    """What one instance uses now, and the most that was seen of it."""
    if not samples:
        return None
    now = samples[-1]
    return {
        "cpu_percent": now.cpu_percent,
        "cpu_percent_peak": max(sample.cpu_percent for sample in samples),
        "memory_bytes": now.memory_bytes,
        "memory_peak_bytes": max(sample.memory_bytes for sample in samples),
        "processes": now.processes,
        "threads": now.threads,
        "open_files": now.open_files,
    }


def _together(used: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Of all instances; their peaks need not have been at the same time."""
    known = [figures for figures in used if figures is not None]
    return {name: sum(figures[name] for figures in known) for name in known[0]} if known else None


def percentiles(latency: Latency) -> dict[str, float | None]:
    """`p50_s`, `p95_s` and `p99_s`; None where there are no values."""
    return {f"p{percent}_s": latency.quantile(percent / 100) for percent in (50, 95, 99)}


def _count(kinds: Any, found: Any) -> dict[str, int]:
    counted = Counter(found)
    return {str(kind): counted[kind] for kind in kinds}


BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""From what a hop on this machine takes to the gateway's own deadlines."""


class Histogram:
    """Counts values by upper bound. As cheap as a search among a dozen numbers."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self.sum_s += seconds

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound, and how many values did not exceed it; the last bound is infinite."""
        count = 0
        for bound, here in zip((*self._bounds_s, float("inf")), self._counts, strict=True):
            count += here
            yield bound, count


def counted(totals: ServiceTotals, fact: Fact) -> ServiceTotals:
    """The totals of the fact's service once `fact` is counted in."""
    match fact:
        case ConnectionEnd():
            return evolve(
                totals,
                sessions_total=totals.sessions_total + 1,
                sessions_failed=totals.sessions_failed + fact.failed,
                # The wall clock may have been set back in between; time is never taken off the total.
                session_seconds=totals.session_seconds
                + max(0.0, (fact.ended_at - fact.started_at).total_seconds()),
                bytes_from_client=totals.bytes_from_client + fact.bytes_from_client,
                bytes_to_client=totals.bytes_to_client + fact.bytes_to_client,
                handshake=_with(totals.handshake, fact.handshake_s),
                first_byte=_with(totals.first_byte, fact.first_byte_s),
            )
        case ConnectionPeak():
            return evolve(totals, sessions_peak=max(totals.sessions_peak, fact.sessions))
        case Event(kind="instance.backoff"):  # the way to every unplanned restart
            return evolve(totals, restarts=totals.restarts + 1)
        case Event(kind="instance.error"):
            return evolve(totals, errors=totals.errors + 1)
        case Event() | HealthCheck() | InstanceEnd():
            return totals


def _with(latency: Latency, seconds: float | None) -> Latency:
    return latency if seconds is None else latency.with_value(seconds)
