"""What `GET /metrics` shows to Prometheus: read off the manager when asked, in a registry of our own.

Labels are bounded by what is registered (services) and by our own words (states, operations); nothing that
a client says becomes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import inf
from shutil import disk_usage
from typing import TYPE_CHECKING, Any

from attrs import frozen
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ..core.stats import Histogram
from ..models import HealthStatus, NodeState, RunResult

if TYPE_CHECKING:
    from ..manager import AgentManager

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The figures of one manager, and of the listener that shows them."""

    def __init__(self, manager: AgentManager) -> None:
        self._requests: dict[str, Histogram] = {}
        self._answers = Counter[tuple[str, int]]()
        self._registry = CollectorRegistry()
        self._registry.register(_Figures(manager))
        self._registry.register(_Requests(self._requests, self._answers))
        ProcessCollector(namespace="agentmgr", registry=self._registry)

    def answered(self, operation: str, status: int, seconds: float) -> None:
        self._requests.setdefault(operation, Histogram()).observe(seconds)
        self._answers[operation, status] += 1

    def text(self) -> bytes:
        """All of them, as Prometheus reads it."""
        return generate_latest(self._registry)


@frozen(eq=False)
class _Requests(Collector):
    requests: Mapping[str, Histogram]
    answers: Mapping[tuple[str, int], int]

    def collect(self) -> Iterable[Metric]:
        yield _timed("api_request", "Time to answer a request of the API.", self.requests, "operation")
        answers = CounterMetricFamily(
            "agentmgr_api_answers", "Answers of the API, by status.", labels=["operation", "status"]
        )
        for (operation, status), count in self.answers.items():
            answers.add_metric([operation, str(status)], count)
        yield answers


@frozen(eq=False)
class _Figures(Collector):
    """Reads the manager at each scrape; there is nothing to keep in step."""

    manager: AgentManager

    def describe(self) -> Iterable[Metric]:
        return ()  # it may be registered before there is a manager to read

    def collect(self) -> Iterable[Metric]:
        manager = self.manager
        info = manager.get_info()
        yield InfoMetricFamily("agentmgr", "Which agentmgr this is.", {"version": info["version"]})
        yield GaugeMetricFamily("agentmgr_uptime_seconds", "Since this manager started.", info["uptime_s"])
        yield GaugeMetricFamily(
            "agentmgr_degraded",
            "1 while something does not work that recovers by itself, as with a full disk.",
            int(bool(info["degraded"])),
        )
        figures = manager.get_system_stats()
        for kind in ("services", "instances"):
            family = GaugeMetricFamily(
                f"agentmgr_{kind}", f"How many {kind} are in each status.", labels=["status"]
            )
            for status, count in figures[kind].items():
                if status != "total":
                    family.add_metric([status], count)
            yield family
        with suppress(OSError):  # the directory was deleted: that is no reason to show no other figure
            free = disk_usage(manager.paths.database.parent).free
            about = "Free space where the database and the logs are."
            yield GaugeMetricFamily("agentmgr_disk_free_bytes", about, free)
        yield from _measured(manager)
        yield from self._by_service()
        if manager.has_cluster:
            yield from self._by_node()

    def _by_node(self) -> Iterable[Metric]:
        def gauge(name: str, help: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"agentmgr_node_{name}", help, labels=["node", *labels])

        state = gauge("state", "1 for the state that the node is in, 0 else.", "state")
        instances = gauge("instances", "Instances that run on the node.")
        sessions = gauge("sessions", "Open sessions through the gateways with these.")
        skew = gauge("clock_skew_seconds", "By how much its clock is before the manager's.")
        has = gauge("resources", "What the node has, as its engine says; memory in bytes.", "resource")
        claimed = gauge("resources_claimed", "What of it is reserved for instances.", "resource")
        for node in self.manager.list_nodes():
            for resource, amount in node.resources.items():
                has.add_metric([node.name, resource], amount)
                claimed.add_metric([node.name, resource], node.claimed.get(resource, 0.0))
            for each in NodeState:
                state.add_metric([node.name, each], int(node.state is each))
            instances.add_metric([node.name], node.instances)
            sessions.add_metric([node.name], node.sessions)
            if node.clock_skew_s is not None:
                skew.add_metric([node.name], node.clock_skew_s)
        yield from (state, instances, sessions, skew, has, claimed)

    def _by_service(self) -> Iterable[Metric]:
        def gauge(name: str, help: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"agentmgr_service_{name}", help, labels=["service"])

        def counter(name: str, help: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"agentmgr_service_{name}", help, labels=["service"])

        wanted = gauge(
            "wanted", "1 while it should run: not one that is stopped, completed, scheduled or asleep."
        )
        health = GaugeMetricFamily(
            "agentmgr_service_health", "1 for the health that it is in, 0 else.", labels=["service", "health"]
        )
        many = gauge("instances_wanted", "Instances that are to run now: of a range, as its load needs.")
        for view in self.manager.list_services():
            wanted.add_metric([view.name], int(view.is_wanted))
            many.add_metric([view.name], view.wanted_instances if view.is_wanted else 0)
            for state in HealthStatus:
                health.add_metric([view.name, state], int(view.health is state))
        yield from (wanted, health, many)
        active = gauge("sessions_active", "Open sessions through the gateway.")
        running = gauge("instances_running", "Instances that serve.")
        in_memory = gauge("journal_degraded", "Instances that cannot keep their sessions just now.")
        ended = counter("sessions", "Sessions that have ended.")
        failed = counter("sessions_failed", "Sessions that the service's side broke off.")
        seconds = counter("session_seconds", "Durations of ended sessions, together.")
        received = counter("received_bytes", "Bytes from clients.")
        sent = counter("sent_bytes", "Bytes to clients.")
        restarts = counter("restarts", "Restarts after a failure.")
        errors = counter("errors", "Times that an instance was given up.")
        run = gauge("last_run_success", "1 if a job's last run completed, 0 if not; gone while one runs.")
        run_ended = gauge("last_run_end_timestamp_seconds", "When a job's last run ended, since 1970.")
        cpu = gauge("cpu_cores", "Processors that its instances keep busy.")
        memory = gauge("memory_bytes", "Resident memory of its instances.")
        processes = gauge("processes", "Processes of its instances.")
        threads = gauge("threads", "Threads of its instances.")
        files = gauge("open_files", "Files and sockets that its instances have open.")
        for service, stats in self.manager.get_stats_by_service().items():
            name, sessions = [service], stats["sessions"]
            count = sessions["completed"] + sessions["failed"]
            active.add_metric(name, sessions["active"])
            running.add_metric(name, sum(i["status"] == "running" for i in stats["instances"]))
            in_memory.add_metric(name, sum(i["journal_degraded"] for i in stats["instances"]))
            ended.add_metric(name, count)
            failed.add_metric(name, sessions["failed"])
            seconds.add_metric(name, (sessions["average_duration_s"] or 0) * count)
            received.add_metric(name, stats["bytes"]["from_client"])
            sent.add_metric(name, stats["bytes"]["to_client"])
            restarts.add_metric(name, stats["restarts"])
            errors.add_metric(name, stats["errors"])
            if (last := stats["last_run"]) is not None and last.ended_at is not None:
                run.add_metric(name, last.result is RunResult.COMPLETED)
                run_ended.add_metric(name, last.ended_at.timestamp())
            if (used := stats["usage"]) is not None:
                cpu.add_metric(name, used["cpu_percent"] / 100)
                memory.add_metric(name, used["memory_bytes"])
                processes.add_metric(name, used["processes"])
                threads.add_metric(name, used["threads"])
                files.add_metric(name, used["open_files"])
        yield from (active, running, in_memory, ended, failed, seconds, received, sent, restarts, errors)
        yield from (run, run_ended, cpu, memory, processes, threads, files)


def _measured(manager: AgentManager) -> Iterable[Metric]:
    """What was timed and counted since the manager started."""
    figures = manager.get_figures()
    for name, help, histogram in (
        (
            "gateway_handshake",
            "From a client's request to its instance's 101: routing, waiting, dialling, the instance.",
            figures.handshakes,
        ),
        (
            "gateway_first_byte",
            "From a client's first message to what its instance said next; counted at the session's end.",
            figures.first_bytes,
        ),
        ("health_check", "Time that an answered health check took.", figures.checks),
        ("event_loop_lag", "How late a sleeping task of this process woke up.", figures.loop_lag),
    ):
        yield _timed(name, help, {None: histogram})
    yield _timed(
        "database",
        "Time that callers waited for the database.",
        manager.get_database_timings(),
        "operation",
    )
    yield CounterMetricFamily(
        "agentmgr_database_dropped_facts",
        "Events, checks and ends of sessions that could not be written, and were given up.",
        manager.get_dropped_facts(),
    )
    checks = CounterMetricFamily("agentmgr_health_checks", "Health checks, by result.", labels=["result"])
    for result, failed in (("ok", False), ("failed", True)):
        checks.add_metric([result], figures.checks_failed[failed])
    yield checks
    refusals = CounterMetricFamily(
        "agentmgr_gateway_refusals", "Clients that the gateway refused, by its reason.", labels=["code"]
    )
    for code, count in figures.refusals.items():
        refusals.add_metric([code], count)
    yield refusals


def _timed(
    name: str, help: str, histograms: Mapping[Any, Histogram], label: str | None = None
) -> HistogramMetricFamily:
    """Histograms by the value of their label, where they have one."""
    family = HistogramMetricFamily(f"agentmgr_{name}_seconds", help, labels=[label] if label else None)
    for value, histogram in histograms.items():
        buckets = [("+Inf" if b == inf else str(b), count) for b, count in histogram.cumulative()]
        family.add_metric([value] if label else [], buckets, histogram.sum_s)
    return family
