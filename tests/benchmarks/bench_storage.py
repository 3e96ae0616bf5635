"""What the store costs, and how that grows (P9 on the storage side, P12).

    python tests/benchmarks/bench_storage.py [--directory DIR] [--services N]

Prints a table; asserts nothing. `--directory` says on which disk, which is what a durable write depends on;
for comparison, the table begins with what a bare write and sync of one page cost there.
"""

import argparse
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio
from attrs import evolve

from agentmgr.models import (
    ConnectionEnd,
    Event,
    HealthCheck,
    HealthStatus,
    ServiceConfig,
    ServiceSpec,
    utc_now,
)
from agentmgr.storage import HistoryLimits, SqliteStore, open_store

NOW = utc_now()


def print_row(what: str, value: str) -> None:
    print(f"| {what:<62} | {value:>22} |", flush=True)


def spread(seconds: list[float], unit: str = "ms") -> str:
    scale = {"ms": 1e3, "µs": 1e6}[unit]
    worst = sorted(seconds)[int(len(seconds) * 0.99)]
    return f"{statistics.median(seconds) * scale:.2f} (p99 {worst * scale:.2f}) {unit}"


async def times(number: int, act: Callable[[int], Awaitable[object]]) -> list[float]:
    found = []
    for index in range(number):
        start = time.perf_counter()
        await act(index)
        found.append(time.perf_counter() - start)
    return found


def spec(number: int) -> ServiceSpec:
    config = ServiceConfig(agent_factory_path="/srv/agents/weather.py", env={"API_KEY": "x" * 40})
    return ServiceSpec(f"service-{number}", config, tags=frozenset({"weather", "chinese"}))


def check(service: ServiceSpec, at: datetime) -> HealthCheck:
    return HealthCheck(service.service_id, "inst_0123456789abcdef", HealthStatus.HEALTHY, at, True, 0.0021)


def session_end(service: ServiceSpec, number: int) -> ConnectionEnd:
    ids = (f"conn_{number:016x}", service.service_id, "inst_0123456789abcdef")
    return ConnectionEnd(*ids, NOW, NOW, "client", 1000, "", *[10] * 4)


def bare_sync(directory: Path) -> list[float]:
    found = []
    with (directory / "page").open("wb", buffering=0) as file:
        for _ in range(300):
            start = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            found.append(time.perf_counter() - start)
    return found


async def users_writes(path: Path, number: int) -> None:
    specs = [spec(index) for index in range(number)]
    async with open_store(path) as store:
        for half, begin in (("first", 0), ("second", number // 2)):
            taken = await times(number // 2, lambda index, b=begin: store.add_service(specs[b + index]))
            print_row(f"register, durable, each ({half} {number // 2})", spread(taken))
        taken = await times(200, lambda index: store.update_service(specs[index].changed(description="new")))
        print_row("change of a service, durable, each", spread(taken))
        taken = await times(1000, lambda index: store.health_history(specs[index % number].service_id))
        print_row("hop to the worker thread and an empty query", spread(taken, "µs"))
        taken = await times(20, lambda _: store.load())
        print_row(f"load of {number} services", spread(taken))
    async with open_store(path, read_only=True) as onlooker:
        taken = await times(20, lambda _: onlooker.load())
        print_row("the same, read with no manager (opening included)", spread(taken))


async def recording(store: SqliteStore, facts: list[HealthCheck | ConnectionEnd | Event]) -> float:
    """Seconds per fact, from `record` to the end of the transaction."""
    start = time.perf_counter()
    for begin in range(0, len(facts), 1000):
        for fact in facts[begin : begin + 1000]:
            store.record(fact)
        await store.flush()
    return (time.perf_counter() - start) / len(facts)


async def history(path: Path, services: int) -> None:
    """The same work with 50, 100, … rows of history for each of the services, up to the limit and beyond."""
    specs = [spec(index) for index in range(services)]
    limits = HistoryLimits(health_checks=400)
    at = NOW - timedelta(days=1)
    async with open_store(path, limits=limits) as store:
        for service in specs:
            await store.add_service(service)
        rows = 0
        for target in (50, 100, 200, 400, 800):
            facts: list[HealthCheck | ConnectionEnd | Event] = []
            while rows < target:
                rows += 1
                at += timedelta(seconds=10)
                facts += [check(service, at) for service in specs]
            each = await recording(store, facts)
            name = f"{target} checks each of {services} services"
            print_row(f"{name}: write and prune, a fact", f"{each * 1e6:.1f} µs")
            taken = await times(200, lambda index: store.health_history(specs[index % services].service_id))
            print_row(f"{name}: newest 100 of one service", spread(taken))
            size = sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))
            print_row(f"{name}: size of the files", f"{size / 2**20:.1f} MiB")
        ends = [session_end(specs[index % services], index) for index in range(20_000)]
        print_row(
            "end of a session: write, count, prune, a fact", f"{await recording(store, ends) * 1e6:.1f} µs"
        )
        events = [Event("instance.running", service_id=specs[0].service_id) for _ in range(20_000)]
        print_row("event: write, prune, a fact", f"{await recording(store, events) * 1e6:.1f} µs")
        taken = await times(100, lambda index: store.update_service(evolve(specs[index], version=2)))
        print_row("change of a service beside all that history", spread(taken))
    start = time.perf_counter()
    async with open_store(path, limits=limits):
        print_row("opening it all, every page checked", f"{(time.perf_counter() - start) * 1e3:.0f} ms")
    aged = HistoryLimits(max_age_s=0.001)
    async with open_store(path, limits=aged) as store:
        store.record(Event("tick"))
        taken = await times(1, lambda _: store.flush())
        print_row("first prune by age of a long history: one transaction", f"{taken[0] * 1e3:.0f} ms")
    copy = path.with_name("copy.db")
    async with open_store(path) as store:
        taken = await times(1, lambda _: store.backup(copy))
        print_row("backup of it", f"{taken[0] * 1e3:.0f} ms")


async def main(directory: Path, services: int) -> None:
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, trio {trio.__version__}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, {versions}\n")
    print_row("what", "median")
    print(f"|{'-' * 64}|{'-' * 23}:|")
    print_row("write and sync of one page, for comparison", spread(bare_sync(directory)))
    await users_writes(directory / "services.db", services)
    await history(directory / "history.db", 300)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, help="where to put the databases (a temporary directory)")
    parser.add_argument("--services", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
        trio.run(main, Path(temporary), arguments.services)
