"""`python -m tests.faults.memory_cluster [--runs N] [--seed S]`: clusters under random faults, in memory.

Real daemons, nodes, launcher and supervisor over memory streams; fake processes; trio's mock clock. Each run
draws its own cluster and faults: cables pulled, machines without power, the manager cut off, killed and
started anew, daemons and processes killed. What must hold:

* a manager has the second of one place launched only after it has given the first one's machine up;
* of what must never be there twice (`on_node_loss=wait`, `on_manager_death=die`) there never are two;
* with all machines linked, a second one is gone within seconds;
* a process ends only for a reason;
* when all is well again, each service is whole, nothing else runs, and no restart was counted that was not
  the process's own fault;
* in a cluster with an engine, which is stopped and loses machines too: no GPU is used by two, and when all is
  well again each instance that asks for something has its claim, on its machine, and there are no others.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio
import trio.testing

from agentmgr.core.amounts import asked
from agentmgr.core.gpus import share_of
from agentmgr.models import InstanceRecord, OnManagerDeath, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.models.nodes import OnNodeLoss
from agentmgr.testing.memory_cluster import KILLED, OWN, MemoryCluster, Process, memory_cluster
from agentmgr.testing.memory_engine import MemoryRay

TOGETHER_S = 8.0
"""How long two of one may be there while all their machines are linked: a stray drains (1 s) and ends."""
CONFIG = {"agent_factory_path": "agent.py", "drain_timeout": 1, "stop_timeout": 1, "restart_delay": 0.1}
BUDGET = 1000


class Watched(MemoryCluster):
    """Writes down what must not be."""

    strict: frozenset[str] = frozenset()  #: services of which there are never two of one
    kills = 0  #: processes that were killed
    planned = False  #: services are restarted as well: a new instance beside the old one
    gpus = 0.0  #: that each instance of the service `gpu` asks for
    wrongs: list[str]

    def wrong(self, what: str) -> None:
        self.wrongs.append(f"at {trio.current_time():.1f} s: {what}")

    def launched(self, process: Process) -> None:
        for gpu in process.record.gpus:
            there = [it for it in self.alive if it.machine == process.machine and gpu in it.record.gpus]
            if len(there) * share_of(self.gpus) > 1.001:
                names = ", ".join(f"{it.name}/{it.key[1]}" for it in there)
                self.wrong(f"GPU {gpu} of {process.machine} is used by {names}")
        others = [it for it in self.alive if it.key == process.key and it is not process]
        for other in others:
            where = f"{process.name}/{process.key[1]} on {process.machine} beside {other.machine}"
            if process.key[0] in self.strict:
                self.wrong(f"a second {where}")
            elif self.planned and other.record.instance_id != process.record.instance_id:
                pass
            elif self._is_current(other) and not self.is_lost(other.machine):
                self.wrong(f"launched {where}, whose machine is not lost")

    def recorded(self, record: InstanceRecord) -> None:
        before = self.records.get(record.instance_id)
        if before is not None and before.token != record.token:
            self._check_over(before)
        super().recorded(record)

    def dropped(self, instance_id: str) -> None:
        if (record := self.records.get(instance_id)) is not None:
            self._check_over(record)
        super().dropped(instance_id)

    def _check_over(self, record: InstanceRecord) -> None:
        for process in self.alive:
            # The end of one that is replaced is waited for, for some seconds.
            given_up = self.planned and not self.is_linked(process.machine)
            if process.record.token == record.token and not (self.is_lost(process.machine) or given_up):
                self.wrong(f"{process.record.token} is taken to be over, and its machine is not lost")

    def _is_current(self, process: Process) -> bool:
        record = self.records.get(process.record.instance_id)
        return record is not None and record.token == process.record.token

    async def watch(self) -> None:
        """Looks for two of one that stay; until cancelled."""
        since: dict[tuple[str, int], float] = {}
        while True:
            await trio.sleep(0.5)
            at: dict[tuple[str, int], list[str]] = {}
            for process in self.alive:
                at.setdefault(process.key, []).append(process.machine)
            for key, machines in at.items():
                if len(machines) < 2 or not all(map(self.is_linked, machines)):
                    since.pop(key, None)
                elif trio.current_time() - since.setdefault(key, trio.current_time()) > TOGETHER_S:
                    self.wrong(f"{key} stays on {machines}")
                    since[key] = trio.current_time() + 1000


class Faults:
    """What is done to a cluster; all of it is mended in the end."""

    def __init__(self, cluster: Watched, draw: random.Random) -> None:
        self._cluster, self._draw = cluster, draw
        self.count: Counter[str] = Counter()
        self._off: set[str] = set()
        self._names = [name for name in cluster.machines if name != OWN]

    async def one(self) -> None:
        kinds: list[tuple[int, Callable[[], object]]] = [
            (5, self.cut), (6, self.mend), (2, self.power_off), (4, self.power_on), (3, self.kill_daemon),
            (3, self.start_daemon), (3, self.kill_manager), (4, self.start_manager), (5, self.kill_a_process),
            (1, self.cut_off_the_manager), (2, self.mend_the_manager), (1, self.cordon), (2, self.uncordon),
        ]  # fmt: skip
        if self._cluster.planned:
            kinds.append((3, self.restart))
        if self._cluster.ray is not None:
            kinds += [(3, self.stop_ray), (5, self.start_ray), (2, self.lose_raylet), (3, self.start_raylet)]
        weights, faults = zip(*kinds, strict=True)
        [fault] = self._draw.choices(faults, weights)
        self.count[fault.__name__.replace("_", " ")] += 1
        if (doing := fault()) is not None:
            await doing  # type: ignore[misc]

    def cut(self) -> None:
        self._cluster.cut(self._draw.choice(self._names))

    def mend(self) -> None:
        self._cluster.mend(self._draw.choice(self._names))

    def cut_off_the_manager(self) -> None:
        self._cluster.cut(OWN)

    def mend_the_manager(self) -> None:
        self._cluster.mend(OWN)

    def cordon(self, cordoned: bool = True) -> None:
        if self._cluster.manager is not None:
            machine = self._cluster.machines[self._draw.choice([OWN, *self._names])]
            self._cluster.manager.nodes.cordon(machine.node_id, cordoned)

    def uncordon(self) -> None:
        self.cordon(False)

    async def restart(self) -> None:
        """A rolling one, of a service of which two may be there."""
        if self._cluster.manager is not None:
            specs = [
                it for it in self._cluster.services.values() if it.service_id not in self._cluster.strict
            ]
            await self._cluster.supervisor.restart(self._draw.choice(specs), wait=False)

    def power_off(self) -> None:
        name = self._draw.choice(self._names)
        self._cluster.power_off(name)
        self._off.add(name)

    async def power_on(self) -> None:
        if self._off:
            name = self._draw.choice(sorted(self._off))
            self._off.discard(name)
            await self._cluster.power_on(name)

    def kill_daemon(self) -> None:
        self._cluster.kill_daemon(self._draw.choice(self._names))

    async def start_daemon(self) -> None:
        down = [it for it in self._names if self._cluster.machines[it].daemon is None and it not in self._off]
        if down:
            await self._cluster.start_daemon(self._draw.choice(down))

    def kill_manager(self) -> None:
        if self._cluster.manager is not None:
            self._cluster.kill_manager()

    async def start_manager(self) -> None:
        if self._cluster.manager is None:
            await self._cluster.start_manager()

    def kill_a_process(self) -> None:
        if alive := self._cluster.alive:
            self._draw.choice(alive).die(KILLED)
            self._cluster.kills += 1

    def stop_ray(self) -> None:
        assert self._cluster.ray is not None
        if self._cluster.ray.runs:
            self._cluster.ray.stop()

    def start_ray(self) -> None:
        assert self._cluster.ray is not None
        if not self._cluster.ray.runs:
            self._cluster.ray.start()

    def lose_raylet(self) -> None:
        """Ray says that a machine is dead, and it may live."""
        assert self._cluster.ray is not None
        self._cluster.ray.lose(f"nod_{self._draw.choice(self._names)}")

    def start_raylet(self) -> None:
        """Where there is none."""
        assert self._cluster.ray is not None
        has = {machine.node_id for machine in self._cluster.ray.machines.values()}
        if lacking := [it for it in self._names if f"nod_{it}" not in has]:
            self._cluster.ray.add(f"nod_{self._draw.choice(lacking)}", {}, RESOURCES)

    async def mend_all(self) -> None:
        for name in self._cluster.machines:
            self._cluster.mend(name)
        while self._off:
            await self.power_on()
        for name in self._names:
            if self._cluster.machines[name].daemon is None:
                await self._cluster.start_daemon(name)
        await self.start_manager()
        if self._cluster.ray is not None:
            self.start_ray()
            for _ in self._names:
                self.start_raylet()
        for machine in self._cluster.machines.values():
            assert self._cluster.manager is not None
            self._cluster.manager.nodes.cordon(machine.node_id, False)


RESOURCES = {"CPU": 8.0, "GPU": 4.0}


def with_claims(draw: random.Random) -> list[ServiceSpec]:
    """Each machine could have all of it."""
    gpu = ServiceConfig(
        **CONFIG, instances=draw.randint(1, 4), max_restart_count=BUDGET, gpus=draw.choice([0.5, 1])
    )
    cpu = ServiceConfig(**CONFIG, instances=draw.randint(1, 3), max_restart_count=BUDGET, cpus=1)
    return [ServiceSpec("gpu", gpu), ServiceSpec("cpu", cpu)]


def services(draw: random.Random) -> list[ServiceSpec]:
    plain = ServiceConfig(**CONFIG, instances=draw.randint(1, 5), max_restart_count=BUDGET)
    strict = ServiceConfig(
        **CONFIG, instances=draw.randint(1, 3), max_restart_count=BUDGET, on_node_loss=OnNodeLoss.WAIT,
        on_manager_death=OnManagerDeath.DIE,
    )  # fmt: skip
    dies = ServiceConfig(**CONFIG, max_restart_count=BUDGET, on_manager_death=OnManagerDeath.DIE)
    return [ServiceSpec("plain", plain), ServiceSpec("strict", strict), ServiceSpec("dies", dies)]


async def run(directory: Path, seed: int, most_faults: int) -> tuple[Counter[str], list[str]]:
    """What was done, and what should not have been."""
    draw = random.Random(seed)
    names = "bcde"[: draw.randint(1, 4)]
    ray = MemoryRay() if draw.random() < 0.5 else None
    async with memory_cluster(directory, *names, draw=draw, kind=Watched, ray=ray) as cluster:
        assert isinstance(cluster, Watched)
        cluster.wrongs = []
        specs = services(draw)
        if ray is not None:
            ray.add("", {}, {"CPU": 2.0})
            for name in names:
                ray.add(f"nod_{name}", {}, RESOURCES)
            specs += with_claims(draw)
            cluster.gpus = specs[-2].config.gpus or 0.0
        cluster.strict = frozenset(spec.service_id for spec in specs if spec.name == "strict")
        cluster.planned = draw.random() < 0.3
        faults = Faults(cluster, draw)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.watch)
            await cluster.start_manager()
            for spec in specs:
                await trio.sleep(draw.choice([0, 3]))
                await cluster.register(spec)
            for _ in range(draw.randint(5, most_faults)):
                await faults.one()
                await trio.sleep(draw.choice([0, 0.01, 0.5, 2, 5, 12, 20, 60]))
            await faults.mend_all()
            await trio.sleep(180)
            nursery.cancel_scope.cancel()
        check_whole(cluster, specs)
        check_claims(cluster)
        return faults.count, cluster.wrongs


def check_whole(cluster: Watched, specs: list[ServiceSpec]) -> None:
    """All mended, and minutes later."""
    instances = cluster.supervisor.instances()
    for it in instances:
        if it.status is not ServiceStatus.RUNNING:
            cluster.wrong(f"{it.service_id}/{it.slot} is {it.status} on {it.node}: {it.error_message}")
        if (used := BUDGET - (it.restarts_left or 0)) > cluster.kills:
            cluster.wrong(f"{it.service_id}/{it.slot} has used {used} restarts, {cluster.kills} were killed")
    for spec in specs:
        if (number := sum(it.service_id == spec.service_id for it in instances)) != spec.config.instances:
            cluster.wrong(f"{spec.name} has {number} instances, not {spec.config.instances}")
    recorded = sorted((record.node_id, record.token) for record in cluster.records.values())
    alive = sorted((cluster.machines[it.machine].node_id, it.record.token) for it in cluster.alive)
    if recorded != alive:
        cluster.wrong(f"{alive} run, {recorded} are recorded")


def check_claims(cluster: Watched) -> None:
    if (ray := cluster.ray) is None:
        return
    by_id = {spec.service_id: spec for spec in cluster.services.values()}
    wanted = sorted(
        (f"agentmgr/memory/{it.record.instance_id}", cluster.machines[it.machine].node_id)
        for it in cluster.alive
        if asked(by_id[it.record.service_id].config)
    )
    claims = sorted((it, ray.machines[claim.engine_id].node_id) for it, claim in ray.claims.items())
    if claims != wanted:
        cluster.wrong(f"claimed is {claims}, wanted {wanted}")
    held = {ray.machines[it].node_id for it in ray.held if it in ray.machines}
    if held != (used := {cluster.machines[it.machine].node_id for it in cluster.alive}):
        cluster.wrong(f"{held} are held, and {used} have instances")
    assert cluster.manager is not None
    assert cluster.manager.claims is not None
    if troubles := cluster.manager.claims.troubles():
        cluster.wrong(f"troubles: {troubles}")


def run_seeded(seed: int, *, most_faults: int = 40) -> tuple[Counter[str], list[str]]:
    """One run, whose tasks are scheduled by the seed."""
    trio_run = sys.modules["trio._core._run"]
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]  # as Hypothesis' trio does
    trio_run._r.seed(seed)  # type: ignore[attr-defined]
    try:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            clock = trio.testing.MockClock(autojump_threshold=0)
            return trio.run(partial(run, Path(directory), seed, most_faults), clock=clock)
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = False  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.faults.memory_cluster", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others follow")
    parser.add_argument("--log", action="store_true", help="show what the cluster logs")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO if args.log else logging.CRITICAL, format="%(message)s")
    count: Counter[str] = Counter()
    failed, begin = 0, time.monotonic()
    for seed in range(args.seed, args.seed + args.runs):
        done, wrongs = run_seeded(seed)
        count += done
        failed += bool(wrongs)
        for wrong in wrongs:
            print(f"seed {seed}: {wrong}", flush=True)
    for name, number in sorted(count.items()):
        print(f"{number:8}  {name}")
    print(f"{args.runs:8}  runs, {failed} with faults; {time.monotonic() - begin:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
