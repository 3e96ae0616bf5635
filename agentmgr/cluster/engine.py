"""What an engine does for a cluster: it knows the machines, and reserves parts of them. Ray is one.

A *machine* is what the engine has in place of a node of ours: it has another id after each restart of the
engine, while a node keeps its id for ever. A *claim* is what is reserved for one instance. A *hold* is a
claim on next to nothing, for the engine not to take a machine with instances for an idle one and remove it.

A cluster need not have an engine (`--cluster joined`), and one with an engine may have nodes that are on none
of its machines: they joined by themselves, and nothing can be reserved there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import Factory, frozen

from ..core.amounts import amounts


@frozen
class Machine:
    """One that has a node of ours."""

    engine_id: str
    node_id: str  #: `nodes.OWN`: the manager's own machine
    address: str
    labels: Mapping[str, str] = Factory(dict)
    resources: Mapping[str, float] = Factory(dict)
    """All that it has, not what is free, under the engine's names; `CPU`, `GPU`, and `memory` in bytes."""


@frozen
class Demand:
    """What is to be reserved for one instance, and where."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_mb: int = 0
    resources: Mapping[str, float] = Factory(dict)
    place_on: tuple[str, ...] = ()
    """Selectors of labels, as `models.nodes` reads them, which the engine's labels have to match. A key
    without the engine's own prefix matches the key with it too (`accelerator-type`,
    `ray.io/accelerator-type`). Not the label `node`, which no engine knows: that is `only_on`, `not_on`.
    """
    only_on: frozenset[str] | None = None  #: ids of nodes; None: any
    not_on: frozenset[str] = frozenset()  #: ids of nodes, such as those that are cordoned

    @property
    def amounts(self) -> dict[str, float]:
        """What of it is not zero, under the engine's names, as `Machine.resources`."""
        return amounts(self.cpus, self.gpus, self.memory_mb, self.resources)


@frozen
class Claim:
    """What is reserved for one instance."""

    claim_id: str  #: as `claim_id` makes it: it is found again after the manager's death
    engine_id: str  #: of the machine that it is on
    gpu_ids: tuple[str, ...] = ()  #: one may be in several claims, where each has a part


class EngineObserver(Protocol):
    """Learns what happens to machines; all of it synchronous and quick."""

    def machine_up(self, machine: Machine) -> None:
        """It has a node of ours, which links soon if it has not yet. Said again where anything of it has
        changed.
        """

    def machine_gone(self, engine_id: str, reason: str) -> None:
        """The engine says that it is dead. Its node may serve on nevertheless, or be back as another machine,
        for which `machine_up` was said by then.
        """

    def machine_forgotten(self, engine_id: str) -> None:
        """The engine does not know it: it was started anew, and the machine has not come back to it yet. So
        it says nothing of the node, neither that it lives nor that it is dead.
        """

    def claims_found(self, claims: Mapping[str, Claim]) -> None:
        """All claims of this cluster that are there, by their ids. Said each time the engine can be asked
        again (after a restart of the engine none is left), and when one has gone without being released, or
        is on another machine now.
        """


class Engine(Protocol):
    """All of it but `run` may be called before it runs, and while the engine cannot be asked."""

    async def run(self, observer: EngineObserver) -> None:
        """Until cancelled. Raises nothing for the engine's faults: see `troubles`."""

    async def claim(
        self, claim_id: str, demand: Demand, *, prefer: str | None, waits: Callable[[str], None]
    ) -> Claim:
        """Reserves it, on the node with the id `prefer` where that is possible at once.

        Waits while nothing that matches is free, and while the engine cannot be asked; `waits` is then
        called with the reason, for the user (`waits for 1 GPU (zone=b): none is free`), each time that it
        is another one. Asked again, also by another manager, it answers with the claim that there is.
        Cancelled, it is taken back. Raises `InvalidRequest` for a demand that the engine cannot express.
        """

    def release(self, claim_id: str) -> None:
        """Gives it back, as soon as the engine can be asked. Nothing happens where there is none."""

    def hold(self, engine_ids: frozenset[str]) -> None:
        """These machines are held from now on, and no others."""

    def revive(self, node_id: str) -> None:
        """The link of this node is down: its daemon is started again, if that is what has ended."""

    def machines(self) -> Sequence[Machine]:
        """As last known."""

    def coming(self) -> int:
        """How many more machines it has on which a node is about to be."""

    def troubles(self) -> tuple[str, ...]:
        """Faults that last now, for the user."""


def claim_prefix(cluster_id: str) -> str:
    """What the ids of all claims of that cluster begin with."""
    return f"agentmgr/{cluster_id}/"


def claim_id(cluster_id: str, instance_id: str) -> str:
    return f"{claim_prefix(cluster_id)}{instance_id}"
