"""The figures that `stats` shows, computed from what is there. Each returns plain, JSON-ready data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from ..models import Connection, HealthStatus, Latency, Service, ServiceStatus, ServiceTotals, Usage


def system_stats(
    services: Sequence[Service], connections: Collection[Connection] = (), *, troubles: Sequence[str] = ()
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


def connection_stats(services: Sequence[Service], connections: Collection[Connection]) -> dict[str, Any]:
    """Live sessions: `{total_connections, by_status, by_service}`; a service without any shows 0."""
    by_service = {service.name: 0 for service in services}
    for connection in connections:
        by_service[connection.service_name] = by_service.get(connection.service_name, 0) + 1
    draining = {
        instance.instance_id
        for service in services
        for instance in service.instances
        if instance.status is ServiceStatus.DRAINING
    }
    leaving = sum(connection.instance_id in draining for connection in connections)
    return {
        "total_connections": len(connections),
        "by_status": {"active": len(connections) - leaving, "draining": leaving},
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
    live: Collection[Connection] = (),
    usage: Mapping[str, Sequence[Usage]] = MappingProxyType({}),
) -> dict[str, Any]:
    """One service: what it did ever (kept across restarts of the manager), and its `live` sessions."""
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
            "handshake": _percentiles(totals.handshake),
            "first_byte": _percentiles(totals.first_byte),
        },
        "bytes": {
            "from_client": totals.bytes_from_client + sum(c.bytes_from_client for c in live),
            "to_client": totals.bytes_to_client + sum(c.bytes_to_client for c in live),
        },
        "restarts": totals.restarts,
        "errors": totals.errors,
        "uptime_s": (now - service.started_at).total_seconds() if service.started_at else None,
        "usage": _together([_used(samples) for samples in usage.values()]),
        "instances": [
            {
                "instance_id": i.instance_id,
                "slot": i.slot,
                "status": i.status,
                "pid": i.pid,
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


def _percentiles(latency: Latency) -> dict[str, float | None]:
    return {f"p{percent}_s": latency.quantile(percent / 100) for percent in (50, 95, 99)}


def _count(kinds: Any, found: Any) -> dict[str, int]:
    counted = Counter(found)
    return {str(kind): counted[kind] for kind in kinds}
