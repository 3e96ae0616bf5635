"""`python -m tests.faults --rounds N [--seed S] [--clients C] [--minutes M] [--forks F]`: faults at length.

So many rounds of each, at random: kills of instances, commands at once on one service, kills of the
manager; a tenth as many kills of a manager while C clients converse through its gateway. `--minutes` adds
churn: services come and go, and at the end descriptors, threads, tasks and memory are where they were.
`--forks` has a fork server fork so often, and looks at the same.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
import trio.testing

from agentmgr.errors import ServiceFailedToStart
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec
from agentmgr.supervisor import Supervisor, procfs
from agentmgr.supervisor.instance_tokens import InstanceTokens
from tests.faults.conversations import kill_managers_under_clients
from tests.faults.managers import kill_managers
from tests.faults.many_forks import fork_many, fork_server
from tests.faults.scenarios import commands_at_once, kill_instances
from tests.supervisor.conftest import CHILD, MemoryRecorder


def command(*options: str, name: str = "svc", **config: Any) -> ServiceSpec:
    words = (sys.executable, "-S", str(CHILD), "--port", "{port}", *options)
    config = {"restart_delay": 0, "command": words, **config}
    return ServiceSpec(name, ServiceConfig(**config), desired_status=DesiredStatus.RUNNING)


async def main(
    rounds: int, clients: int, minutes: float, forks: int, seed: int, directory: Path
) -> Counter[str]:
    total: Counter[str] = Counter()
    draw = random.Random(seed)
    tokens = InstanceTokens.of(directory / "logs")

    def descendants() -> list[int]:
        return [p.pid for p in procfs.scan() if p.token is not None and tokens.made(p.token)]

    async def supervised(scenario: Any) -> None:
        recorder = MemoryRecorder()
        supervisor = Supervisor(recorder, log_dir=directory / "logs")
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            total.update(await scenario(supervisor, recorder))
            await supervisor.shutdown(force=True)
        total["orphans"] += len(descendants())

    if forks:
        async with fork_server() as server:
            await fork_many(server, forks)
            total["forks"] += server.forks
    await supervised(lambda s, recorder: kill_instances(s, recorder, [command], rounds, draw))
    await supervised(lambda s, recorder: commands_at_once(s, recorder, command, descendants, rounds, draw))
    total.update(await kill_managers(directory / "manager.db", rounds, draw))
    if clients:
        place, kills = directory / "clients", -(-rounds // 10)
        total.update(await kill_managers_under_clients(place, clients=clients, kills=kills, random=draw))
    if minutes:
        await supervised(lambda s, recorder: churn(s, minutes * 60, draw, recorder))
    return total


async def churn(
    s: Supervisor, seconds: float, draw: random.Random, recorder: MemoryRecorder | None = None
) -> Counter[str]:
    """The `recorder` keeps all that it is told, which would count as memory that the supervisor leaks."""
    count: Counter[str] = Counter()
    await round_of_churn(s, draw)  # what is made once and kept is made now
    await trio.testing.wait_all_tasks_blocked()
    before = footprint()
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        count["instances churned"] += await round_of_churn(s, draw)
        if recorder is not None:
            recorder.forget()
    await trio.testing.wait_all_tasks_blocked()
    after = footprint()
    print(f"churn: before {before}, after {after}")
    assert after["descriptors"] <= before["descriptors"]
    assert after["threads"] <= before["threads"] + 2  # trio keeps idle ones for ten seconds
    assert after["tasks"] <= before["tasks"]
    assert after["rss_mib"] <= before["rss_mib"] + 10
    return count


async def round_of_churn(s: Supervisor, draw: random.Random) -> int:
    specs = [command(name=f"churn{i}", instances=draw.randint(1, 5)) for i in range(10)]

    async def start(spec: ServiceSpec) -> None:
        # Another manager of this machine may try a port just as ours binds it; then there is a second try.
        with suppress(ServiceFailedToStart):
            await s.start(spec)

    async with trio.open_nursery() as nursery:
        for spec in specs:
            nursery.start_soon(start, spec)
    for view in draw.sample(s.instances(), 5):
        if view.pid is not None:
            os.kill(view.pid, 9)
    started = len(s.instances())
    async with trio.open_nursery() as nursery:
        for spec in specs:
            nursery.start_soon(s.stop, spec.service_id)
    for spec in specs:
        s.forget(spec.service_id)
    return started


def footprint() -> dict[str, int]:
    gc.collect()
    stat = procfs.stat(os.getpid())
    assert stat is not None
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "rss_mib": stat.resident_pages * os.sysconf("SC_PAGE_SIZE") >> 20,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--forks", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = parser.parse_args()
    print(f"seed={args.seed}", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        counts = trio.run(
            main, args.rounds, args.clients, args.minutes, args.forks, args.seed, Path(directory)
        )
    for name, number in sorted(counts.items()):
        print(f"{number:8}  {name}")
    print(f"{time.monotonic() - begin:8.0f}  seconds; nothing lost, nobody orphaned, nothing twice")
