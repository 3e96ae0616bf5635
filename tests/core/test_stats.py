"""The figures that `stats` shows."""

from collections import Counter
from datetime import timedelta

from agentmgr.core.stats import connection_stats, health_summary, service_stats, system_stats
from agentmgr.core.view import service_view
from agentmgr.models import (
    Connection,
    HealthStatus,
    Instance,
    Latency,
    Service,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
    ServiceTotals,
    Usage,
    utc_now,
)

NOW = utc_now()


def service(name: str, *statuses: ServiceStatus, active: int = 0) -> Service:
    spec = ServiceSpec(name=name, config=ServiceConfig(command=("serve",)), service_id=name)
    found = [
        Instance(f"{name}-{slot}", name, slot, status, HealthStatus.HEALTHY, started_at=NOW)
        for slot, status in enumerate(statuses)
    ]
    return service_view(spec, found, active)


def connection(name: str, slot: int) -> Connection:
    return Connection(
        f"c-{name}-{slot}", "127.0.0.1", 5000, name, name, f"{name}-{slot}", None, "/", NOW, 0.0, 1, 2, 3, 4
    )


SERVICES = [
    service("chat", ServiceStatus.RUNNING, ServiceStatus.DRAINING, active=2),
    service("idle"),
    service("sick", ServiceStatus.ERROR),
]
CONNECTIONS = [connection("chat", 0), connection("chat", 1)]
COUNTS = Counter((it.service_name, it.instance_id) for it in CONNECTIONS)


def test_every_status_is_counted_also_those_that_nobody_has() -> None:
    figures = system_stats(SERVICES, COUNTS)
    assert figures["services"] == {
        "total": 3, "running": 1, "stopped": 1, "error": 1,
        "starting": 0, "unhealthy": 0, "draining": 0, "stopping": 0, "backoff": 0,
            "completed": 0, "scheduled": 0, "asleep": 0,
    }  # fmt: skip
    assert figures["instances"]["total"] == 3


def test_connections_are_counted_by_service_and_by_whether_they_may_stay() -> None:
    assert connection_stats(SERVICES, COUNTS) == {
        "total_connections": 2,
        "by_status": {"active": 1, "draining": 1},
        "by_service": {"chat": 2, "idle": 0, "sick": 0},
    }


def test_a_service_that_does_not_run_has_unknown_health() -> None:
    assert health_summary(SERVICES) == {
        "total": 3, "healthy": 2, "unknown": 1, "unhealthy": 0, "degraded": 0,
    }  # fmt: skip


def test_a_service_counts_what_ended_and_what_is_live() -> None:
    totals = ServiceTotals(
        sessions_total=4, sessions_failed=1, session_seconds=10.0, restarts=2, sessions_peak=3
    )
    figures = service_stats(SERVICES[0], totals, now=NOW + timedelta(seconds=7))
    assert figures["connections"] == {"total": 6, "active": 2, "peak": 3}
    assert figures["sessions"] == {
        "total": 6, "active": 2, "completed": 3, "failed": 1, "average_duration_s": 2.5,
    }  # fmt: skip
    assert (figures["restarts"], figures["uptime_s"]) == (2, 7.0)


def test_without_sessions_there_is_no_average() -> None:
    figures = service_stats(SERVICES[1], ServiceTotals(), now=NOW)
    assert figures["sessions"]["average_duration_s"] is None
    assert figures["uptime_s"] is None


def test_what_it_uses_is_the_latest_sample_of_each_instance_and_their_sum() -> None:
    def used(cpu_percent: float, memory_bytes: int) -> Usage:
        return Usage(NOW, cpu_percent, memory_bytes, processes=1, threads=2, open_files=3)

    samples = {"chat-0": (used(90.0, 500), used(1.5, 300)), "chat-1": (used(2.0, 200),)}
    figures = service_stats(SERVICES[0], ServiceTotals(), now=NOW, usage=samples)
    assert figures["usage"] == {
        "cpu_percent": 3.5, "cpu_percent_peak": 92.0, "memory_bytes": 500, "memory_peak_bytes": 700,
        "processes": 2, "threads": 4, "open_files": 6,
    }  # fmt: skip
    assert [i["usage"]["memory_peak_bytes"] for i in figures["instances"]] == [500, 200]


def test_what_was_not_measured_is_not_shown_as_nothing() -> None:
    figures = service_stats(SERVICES[0], ServiceTotals(), now=NOW, usage={"chat-0": ()})
    assert figures["usage"] is None
    assert [i["usage"] for i in figures["instances"]] == [None, None]


def test_response_times_are_percentiles_or_unknown() -> None:
    handshake = Latency()
    for milliseconds in range(1, 101):
        handshake = handshake.with_value(milliseconds / 1000)
    figures = service_stats(SERVICES[0], ServiceTotals(handshake=handshake), now=NOW)
    found = figures["response_time"]["handshake"]
    assert 0.050 <= found["p50_s"] <= 0.060
    assert 0.095 <= found["p95_s"] <= 0.114
    assert 0.099 <= found["p99_s"] <= 0.118
    assert figures["response_time"]["first_byte"] == {"p50_s": None, "p95_s": None, "p99_s": None}
