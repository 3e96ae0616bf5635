"""An engine within the test: machines that come and go, claims, and the engine's own end and new start.

`MemoryRay` is what outlives managers, as a Ray cluster does; a `MemoryEngine` is one manager's way to it.

    ray = MemoryRay()
    ray.add("nod_b", {"zone": "b"}, {"CPU": 8, "GPU": 4})
    async with memory_cluster(tmp_path, "b", ray=ray) as cluster:
        await cluster.start_manager()
        ...
        ray.stop()
        ray.start()  # no claim is left, and all machines have other ids

It reserves as Ray does: whole amounts and fractions, GPUs by their numbers, a fraction of one GPU where that
is free, on the machine with the least left that has enough.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import trio
from attrs import Factory, define

from ..cluster.claim_demands import labels_of
from ..cluster.engine import Claim, Demand, EngineObserver, Machine
from ..core.amounts import GPU, in_words
from ..core.gpus import share_of
from ..models.nodes import selectors

_TINY = 1e-6


@define(eq=False)
class _Granted:
    claim: Claim
    demand: Demand

    @property
    def amounts(self) -> dict[str, float]:
        return self.demand.amounts


@define
class MemoryRay:
    """All of it runs at first."""

    machines: dict[str, Machine] = Factory(dict)  #: by engine id
    runs: bool = True
    starts: int = 1
    news: trio.lowlevel.ParkingLot = Factory(trio.lowlevel.ParkingLot)
    held: frozenset[str] = frozenset()  #: engine ids
    died: dict[str, str] = Factory(dict)  #: why, by engine id
    _granted: dict[str, _Granted] = Factory(dict)  # by claim id

    # What befalls it

    def add(
        self,
        node_id: str,
        labels: Mapping[str, str] | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> str:
        """A machine, with that node; its engine id."""
        engine_id = f"ray-{self.starts}-{len(self.machines) + len(self.died)}-{node_id}"
        self.machines[engine_id] = Machine(
            engine_id, node_id, "10.0.0.1", labels or {}, resources or {"CPU": 4.0}
        )
        self._changed()
        return engine_id

    def lose(self, node_id: str, reason: str = "its raylet died") -> None:
        """Ray says that it is dead, with its claims. Ray makes them again elsewhere where it can."""
        for engine_id, machine in list(self.machines.items()):
            if machine.node_id == node_id:
                del self.machines[engine_id]
                self.died[engine_id] = reason
                for claim_id, granted in list(self._granted.items()):
                    if granted.claim.engine_id == engine_id:
                        del self._granted[claim_id]
                        self.grant(claim_id, granted.demand, None)
        self._changed()

    def stop(self) -> None:
        """All of Ray has ended."""
        self.runs = False
        self._granted.clear()
        self.held = frozenset()
        self._changed()

    def start(self) -> None:
        """As another Ray, on the same machines."""
        self.runs, self.starts = True, self.starts + 1
        before, self.machines, self.died = list(self.machines.values()), {}, {}
        for machine in before:
            self.add(machine.node_id, machine.labels, machine.resources)

    # What there is

    @property
    def claims(self) -> dict[str, Claim]:
        return {claim_id: granted.claim for claim_id, granted in self._granted.items()}

    def used(self, engine_id: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for granted in self._granted.values():
            if granted.claim.engine_id == engine_id:
                for name, amount in granted.amounts.items():
                    found[name] = found.get(name, 0.0) + amount
        return found

    def gpus_used(self, engine_id: str) -> dict[str, float]:
        """Of each GPU, by its number."""
        count = int(self.machines[engine_id].resources.get(GPU, 0))
        found = dict.fromkeys(map(str, range(count)), 0.0)
        for granted in self._granted.values():
            if granted.claim.engine_id == engine_id:
                for gpu_id in granted.claim.gpu_ids:
                    found[gpu_id] += share_of(granted.demand.gpus)
        return found

    def grant(self, claim_id: str, demand: Demand, prefer: str | None) -> Claim | None:
        """That which there is, or a new one; None: nothing that matches is free."""
        if claim_id in self._granted:
            return self._granted[claim_id].claim
        fitting = [it for it in self.machines.values() if _matches(it, demand) and self._has(it, demand)]
        if not fitting:
            return None
        machine = min(fitting, key=lambda it: (it.node_id != prefer, self._left(it), it.engine_id))
        claim = Claim(claim_id, machine.engine_id, self._gpus(machine, demand.gpus) or ())
        self._granted[claim_id] = _Granted(claim, demand)
        return claim

    def drop(self, claim_id: str) -> None:
        if self._granted.pop(claim_id, None) is not None:
            self._changed()

    def _left(self, machine: Machine) -> float:
        return sum(machine.resources.values()) - sum(self.used(machine.engine_id).values())

    def _has(self, machine: Machine, demand: Demand) -> bool:
        used = self.used(machine.engine_id)
        return self._gpus(machine, demand.gpus) is not None and all(
            used.get(name, 0.0) + amount <= machine.resources.get(name, 0.0) + _TINY
            for name, amount in demand.amounts.items()
        )

    def _gpus(self, machine: Machine, gpus: float) -> tuple[str, ...] | None:
        used, count, share = self.gpus_used(machine.engine_id), math.ceil(gpus), share_of(gpus)
        free = [it for it in used if used[it] + share <= 1 + _TINY]
        free.sort(key=lambda it: (-used[it], it))
        return tuple(free[:count]) if len(free) >= count else None

    def _changed(self) -> None:
        self.news.unpark_all()


class MemoryEngine:
    """Implements `cluster.engine.Engine` over a `MemoryRay`."""

    def __init__(self, ray: MemoryRay, *, draw: random.Random | None = None) -> None:
        self._ray, self._draw = ray, draw or random.Random(0)
        self._connected = False
        self._is_cut = False
        self._posted: list[str] = []  # claims to give back
        self._known: dict[str, Machine] = {}  # machines, as told, by engine id
        self._told: dict[str, Claim] = {}
        self._held: frozenset[str] | None = None

    async def run(self, observer: EngineObserver) -> None:
        try:
            while True:
                starts = self._ray.starts
                while not self._ray.runs:
                    await self._ray.news.park()
                await self._delay()  # a bridge starts
                if not self._ray.runs:
                    continue
                if self._is_cut:
                    await trio.sleep_forever()
                self._connect(observer)
                while self._ray.runs and self._ray.starts == starts and not self._is_cut:
                    self._look(observer)
                    await self._ray.news.park()
                self._connected = False
        finally:
            self._connected = False

    async def claim(
        self, claim_id: str, demand: Demand, *, prefer: str | None, waits: Callable[[str], None]
    ) -> Claim:
        claim: Claim | None = None
        try:
            while claim is None:
                if not (self._connected and self._ray.runs):
                    waits("waits for Ray: nothing of it runs")
                elif (found := self._ray.grant(claim_id, demand, prefer)) is not None:
                    await self._delay()
                    if self._ray.claims.get(claim_id) == found:  # else Ray has ended meanwhile
                        self._told[claim_id] = claim = found
                    continue
                else:
                    waits(f"waits for {in_words(demand.amounts)}: none is free")
                await self._ray.news.park()
        finally:
            if claim is None:
                self.release(claim_id)
        return claim

    def release(self, claim_id: str) -> None:
        self._told.pop(claim_id, None)
        if self._connected:
            self._ray.drop(claim_id)
        else:
            self._posted.append(claim_id)

    def cut(self) -> None:
        """Its manager was killed: whatever that one's tasks do until they end, Ray hears none of it."""
        self._is_cut, self._connected = True, False

    def hold(self, engine_ids: frozenset[str]) -> None:
        self._held = engine_ids
        if self._connected:
            self._ray.held = engine_ids

    def revive(self, node_id: str) -> None:
        """Its daemon is not the engine's, here."""

    def machines(self) -> Sequence[Machine]:
        return tuple(self._known.values())

    def coming(self) -> int:
        """None: each has its node at once."""
        return 0

    def troubles(self) -> tuple[str, ...]:
        return () if self._connected else ("Ray cannot be reached",)

    def _connect(self, observer: EngineObserver) -> None:
        for claim_id in self._posted:
            self._ray.drop(claim_id)
        self._posted.clear()
        self._connected = True
        for machine in self._ray.machines.values():
            self._up(observer, machine)
        for engine_id in self._known.keys() - self._ray.machines.keys():
            self._down(observer, engine_id)
        self._told = dict(self._ray.claims)
        observer.claims_found(self._told)
        if self._held is not None:
            self._ray.held = self._held
        self._ray.news.unpark_all()  # what waits may be asked for now

    def _look(self, observer: EngineObserver) -> None:
        for engine_id, machine in self._ray.machines.items():
            if self._known.get(engine_id) != machine:
                self._up(observer, machine)
        for engine_id in self._known.keys() - self._ray.machines.keys():
            self._down(observer, engine_id)
        now = self._ray.claims
        if any(now.get(claim_id) != claim for claim_id, claim in self._told.items()):
            self._told = now
            observer.claims_found(now)

    def _up(self, observer: EngineObserver, machine: Machine) -> None:
        self._known[machine.engine_id] = machine
        observer.machine_up(machine)

    def _down(self, observer: EngineObserver, engine_id: str) -> None:
        del self._known[engine_id]
        if (reason := self._ray.died.get(engine_id)) is not None:
            observer.machine_gone(engine_id, reason)
        else:
            observer.machine_forgotten(engine_id)

    async def _delay(self) -> None:
        await trio.sleep(self._draw.uniform(0, 0.01))


def _matches(machine: Machine, demand: Demand) -> bool:
    labels = labels_of(machine)
    return (
        (demand.only_on is None or machine.node_id in demand.only_on)
        and machine.node_id not in demand.not_on
        and all(selector.matches(labels) for selector in selectors(demand.place_on))
    )
