"""What the engine of a cluster has reserved for our instances, and on which node each of them is.

An instance that asks for something has one claim, from its first placement until its slot is closed. A claim
is where its instance is: when the engine has lost it, as by a restart of Ray, it is made again on that node
while the instance lives on; when the instance has lost its node, it is given back and made anew elsewhere.
What the engine has and no instance does is given back. Where an instance lives without its claim, nothing new
is claimed until that is back: what looks free to the engine is in use.

The engine's machines come and go under their own ids, and stand for nodes: what is said of a machine is said
to `Nodes` of its node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import trio
from attrs import define, evolve, field

from ..core.amounts import in_words
from ..core.gpus import Shares, hand_out, share_of
from ..core.placement import Placed, Wish
from ..core.restart import Cause
from ..errors import InvalidRequest
from ..models import ServiceConfig
from ..models.nodes import NodeState, selectors
from ..supervisor.launcher import CannotLaunch
from .claim_demands import Sought, demand_of, labels_of, sought, takes
from .engine import Claim, Demand, Engine, Machine, claim_id
from .nodes import Nodes

log = logging.getLogger(__name__)

_REVIVE_S = 20.0  #: each try costs its machine a process or two
_SILENT_S = 1.0  #: an engine that has not answered for so long is what an instance waits for
_NAMED = 5  #: more would fill the screen


@define(eq=False)
class _Kept:
    """The claim of an instance."""

    claim_id: str
    demand: Demand
    claim: Claim | None = None  #: None: the engine has none, as far as is known
    node_id: str | None = None  #: where the instance is; None: nowhere yet
    gpus: tuple[str, ...] = ()  #: that it uses there
    obtaining: bool = False  #: its slot is asking
    pending: Demand | None = None  #: what it asks for, where that is not free
    short: bool = False  #: its claim has GPUs that others still use
    lacks: str = ""  #: why it has no claim although it runs

    @property
    def share(self) -> float:
        return share_of(self.demand.gpus)


@define(eq=False)
class _Renewal:
    """A task asks the engine again for what an instance that runs had."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    done: trio.Event = field(factory=trio.Event)


class Claims:
    """Implements `engine.EngineObserver`."""

    def __init__(self, engine: Engine, cluster_id: str, nodes: Nodes) -> None:
        self.engine = engine
        self._cluster_id, self._nodes, self.placed = cluster_id, nodes, Placed()
        self._kept: dict[str, _Kept] = {}  # by instance id
        self._renewals: dict[str, _Renewal] = {}  # by instance id
        self._machines: dict[str, Machine] = {}  # by engine id
        self._machine_of: dict[str, Machine] = {}  # the newest one, by node id
        self._found: frozenset[str] | None = None  # ids that the engine has told; None: it was never asked
        self._held: frozenset[str] | None = None
        self._lacking: frozenset[str] = frozenset()  # nodes where an instance lives without its claim
        self._all_known = False
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._revive)
            try:
                await self.engine.run(self)
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    # For the slots of instances

    async def obtain(
        self, instance_id: str, wish: Wish, config: ServiceConfig, waits: Callable[[str], None]
    ) -> str:
        """The id of the node on which its claim is now; that is linked. Raises `CannotLaunch`."""
        kept = self._kept.get(instance_id)
        if kept is None:
            kept = self._kept[instance_id] = self._new(instance_id, config)
        # Its last process has ended, or is a stray of its node.
        kept.obtaining, kept.lacks, kept.gpus = True, "", ()
        self._find_lacking()
        try:
            while (renewal := self._renewals.get(instance_id)) is not None:
                renewal.scope.cancel()
                await renewal.done.wait()
            while (node_id := self._usable(kept, wish, waits)) is None:
                if kept.claim is not None:  # `_usable` has said what it waits for
                    await self._nodes.news.park()
                    continue
                where = self._where(kept.demand, wish)
                if where.nowhere is not None:
                    waits(where.nowhere)
                    await self._nodes.news.park()
                else:
                    await self._ask(instance_id, kept, where, wish, waits)
            return node_id
        finally:
            kept.obtaining = kept.short = False

    def keep(self, instance_id: str, config: ServiceConfig, node_id: str, gpus: tuple[str, ...]) -> None:
        """It runs on that node since an earlier manager, with these GPUs."""
        kept = self._kept[instance_id] = self._new(instance_id, config)
        kept.node_id, kept.gpus = node_id, gpus
        self._review()

    def release(self, instance_id: str) -> None:
        """It is over."""
        if (kept := self._kept.pop(instance_id, None)) is None:
            return
        if (renewal := self._renewals.get(instance_id)) is not None:
            renewal.scope.cancel()
        self.engine.release(kept.claim_id)
        self._find_lacking()
        self._nodes.news.unpark_all()

    def forget(self, instance_id: str) -> None:
        """It is left to the next manager, with its claim."""
        self._kept.pop(instance_id, None)

    def gpus(self, instance_id: str) -> tuple[str, ...]:
        """Those that it is to use."""
        kept = self._kept.get(instance_id)
        return () if kept is None else kept.gpus

    def know_all(self) -> None:
        """The manager has adopted all that it knows: other claims are given back."""
        self._all_known = True
        self._give_back_others()
        self.update_holds()

    @property
    def settled(self) -> bool:
        """Whether all machines that the engine has are linked nodes."""
        nodes = {it.node_id: it.state for it in self._nodes.candidates()}
        there = all(nodes.get(it) in (NodeState.LINKED, NodeState.CORDONED) for it in self._machine_of)
        return self._found is not None and not self.engine.coming() and there

    def makes_room(self, old_id: str, new_id: str) -> bool:
        """Whether the claim of the new instance, which waits, could have the place of the old one's."""
        old, new = self._kept.get(old_id), self._kept.get(new_id)
        if old is None or new is None or old.claim is None or new.pending is None:
            return False
        demand, node_id = new.pending, self._node_of(old.claim)
        labels = next((it.labels for it in self._nodes.candidates() if it.node_id == node_id), {})
        has, wants = old.demand.amounts, demand.amounts
        return (
            (demand.only_on is None or node_id in demand.only_on)
            and node_id not in demand.not_on
            and all(selector.matches(labels) for selector in selectors(demand.place_on))
            and all(has.get(name, 0.0) >= amount for name, amount in wants.items())
        )

    def update_holds(self) -> None:
        """Holds the machines that have instances, as `placed` knows."""
        if not self._all_known or self._nodes.retired:  # what a newer manager has is not ours to let go
            return
        there = (self._machine_of.get(node_id) for node_id in self.placed.nodes())
        held = frozenset(machine.engine_id for machine in there if machine is not None)
        if held != self._held:
            self._held = held
            self.engine.hold(held)

    # For those who operate it

    def machine(self, node_id: str) -> Machine | None:
        """The one that the node is on."""
        return self._machine_of.get(node_id)

    def machines(self) -> tuple[Machine, ...]:
        return tuple(self._machines.values())

    def claimed(self) -> dict[str, dict[str, float]]:
        """What our claims hold of each node, by the engine's names."""
        found: dict[str, dict[str, float]] = {}
        for kept in self._kept.values():
            if kept.claim is not None and (node_id := self._node_of(kept.claim)) is not None:
                there = found.setdefault(node_id, {})
                for name, amount in kept.demand.amounts.items():
                    there[name] = there.get(name, 0.0) + amount
        return found

    def troubles(self) -> tuple[str, ...]:
        """Faults that last now, for the user."""
        lacking = [(it, kept) for it, kept in self._kept.items() if kept.lacks]
        found = [
            f"instance {instance_id} runs on node {self._nodes.name_of(kept.node_id or '')}, and what was "
            f"reserved for it there is gone: {kept.lacks}"
            for instance_id, kept in lacking[:_NAMED]
        ]
        if (more := len(lacking) - _NAMED) > 0:
            found.append(f"{more} more instances run without what was reserved for them")
        return (*self.engine.troubles(), *found)

    # What the engine says (`EngineObserver`)

    def machine_up(self, machine: Machine) -> None:
        self._machines[machine.engine_id] = self._machine_of[machine.node_id] = machine
        self._nodes.engine_says(machine.node_id, "", labels_of(machine))
        self._review()

    def machine_gone(self, engine_id: str, reason: str) -> None:
        self._no_machine(engine_id, reason or "it gives no reason")

    def _no_machine(self, engine_id: str, gone: str) -> None:
        machine = self._machines.pop(engine_id, None)
        for kept in self._kept.values():
            if kept.claim is not None and kept.claim.engine_id == engine_id:
                self._take_back(kept)
        if machine is not None and self._machine_of.get(machine.node_id) is machine:
            del self._machine_of[machine.node_id]
            self._nodes.engine_says(machine.node_id, gone)
        self._review()

    def machine_forgotten(self, engine_id: str) -> None:
        self._no_machine(engine_id, "")

    def claims_found(self, claims: Mapping[str, Claim]) -> None:
        self._found = frozenset(claims)
        for kept in self._kept.values():
            if kept.claim is not None or not kept.obtaining:  # else it is being asked for
                kept.claim = claims.get(kept.claim_id)
        self._give_back_others()
        self._review()

    # Inside

    async def _revive(self) -> None:
        """Nobody sees a daemon die whose node is silent already: so it is asked for again and again."""
        while True:
            await trio.sleep(_REVIVE_S)
            for node in self._nodes.candidates():
                silent = node.state in (NodeState.SILENT, NodeState.LOST)
                if silent and node.node_id in self._machine_of:
                    self.engine.revive(node.node_id)

    def _new(self, instance_id: str, config: ServiceConfig) -> _Kept:
        return _Kept(claim_id(self._cluster_id, instance_id), demand_of(config))

    def _node_of(self, claim: Claim) -> str | None:
        machine = self._machines.get(claim.engine_id)
        return None if machine is None else machine.node_id

    def _usable(self, kept: _Kept, wish: Wish, waits: Callable[[str], None]) -> str | None:
        """The node of its claim, if it can be launched there; gives the claim back if it never can."""
        if (claim := kept.claim) is None:
            return None
        there = None
        if (machine := self._machines.get(claim.engine_id)) is not None:
            there = next((it for it in self._nodes.candidates() if it.node_id == machine.node_id), None)
        if there is None or there.state is NodeState.SILENT:
            name = claim.engine_id if there is None else there.name
            waits(f"waits for node {name} to link: what it asks for is reserved there")
        elif not takes(there, wish) or there.node_id in self._lacking:
            self._take_back(kept)
        elif (gpus := self._free_gpus(kept, claim, there.node_id)) is None:
            kept.short = True
            waits(
                f"waits for a GPU of node {there.name}: one is reserved, and another instance still uses it"
            )
        else:
            kept.node_id, kept.gpus, kept.short = there.node_id, gpus, False
            return there.node_id
        return None

    def _free_gpus(self, kept: _Kept, claim: Claim, node_id: str) -> tuple[str, ...] | None:
        if not claim.gpu_ids:
            return ()
        held, used = [], []
        for each in self._kept.values():
            if each.claim is not None and each.claim.gpu_ids and self._node_of(each.claim) == node_id:
                held.append(Shares(each.claim.gpu_ids, each.share))
            if each is not kept and each.node_id == node_id and each.gpus:
                used.append(Shares(each.gpus, each.share))
        used += map(Shares, self._strays(kept, node_id))
        return hand_out(Shares(claim.gpu_ids, kept.share), held, used)

    def _strays(self, kept: _Kept, node_id: str) -> Iterator[tuple[str, ...]]:
        """The GPUs of processes that were replaced and have not ended there yet."""
        if (handle := self._nodes.get(node_id)) is None:
            return
        for instance_id, gpus in handle.gpus_unattached().items():
            known = self._kept.get(instance_id)
            is_own = known is kept  # its last process ends before it is launched
            is_launching = known is not None and (known.node_id, known.gpus) == (node_id, gpus)
            if not (is_own or is_launching):
                yield gpus

    def _where(self, demand: Demand, wish: Wish) -> Sought:
        nodes = self._nodes.candidates()
        return sought(demand, wish, nodes, self._machine_of, self.placed, in_use=self._lacking)

    async def _ask(
        self, instance_id: str, kept: _Kept, where: Sought, wish: Wish, waits: Callable[[str], None]
    ) -> None:
        """Returns when it has its claim, or when something else is to be asked for."""
        problem: InvalidRequest | None = None
        said = False

        def pending(reason: str) -> None:
            nonlocal said
            kept.pending, said = where.demand, True
            waits(reason)

        async def say_if_silent() -> None:
            await trio.sleep(_SILENT_S)
            if not said:
                waits(f"waits for Ray to reserve {in_words(kept.demand.amounts)}")

        if where.prefer is not None:
            self.placed.expect(instance_id, wish.service_id, wish.position, where.prefer)
        async with trio.open_nursery() as nursery:

            async def until_changed() -> None:
                while self._where(kept.demand, wish).demand == where.demand:
                    await self._nodes.news.park()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_changed)
            nursery.start_soon(say_if_silent)
            try:
                kept.claim = await self.engine.claim(
                    kept.claim_id, where.demand, prefer=where.prefer, waits=pending
                )
            except InvalidRequest as error:
                problem = error
            finally:
                kept.pending = None
            nursery.cancel_scope.cancel()
        self.placed.remove(instance_id)
        if any(each.short for each in self._kept.values()):
            self._nodes.news.unpark_all()  # what was reserved now may be what another one uses
        if problem is not None:
            raise CannotLaunch(Cause.CANNOT_EXECUTE, problem.message)

    def _take_back(self, kept: _Kept) -> None:
        kept.claim = None
        self.engine.release(kept.claim_id)

    def _give_back_others(self) -> None:
        """Those that no instance has."""
        if not self._all_known or not self._found or self._nodes.retired:
            return
        ours = {kept.claim_id for kept in self._kept.values()}
        for each in self._found - ours:
            log.info("giving back %s: no instance has this claim", each)
            self.engine.release(each)
        self._found = frozenset()

    def _find_lacking(self) -> None:
        self._lacking = frozenset(
            kept.node_id
            for kept in self._kept.values()
            if kept.claim is None and kept.node_id is not None and not kept.obtaining
        )

    def _review(self) -> None:
        """After each change of machines or claims."""
        if self._nodes.retired:
            return
        for instance_id, kept in self._kept.items():
            if kept.obtaining or kept.node_id is None:
                continue
            if kept.claim is not None and self._node_of(kept.claim) not in (None, kept.node_id):
                self._take_back(kept)  # the engine has moved it to another machine
            wanted = kept.claim is None and self._found is not None and kept.node_id in self._machine_of
            if wanted and instance_id not in self._renewals and self._nursery is not None:
                renewal = self._renewals[instance_id] = _Renewal()
                self._nursery.start_soon(self._renew, instance_id, kept, renewal)
        self._find_lacking()
        self.update_holds()
        self._nodes.news.unpark_all()

    async def _renew(self, instance_id: str, kept: _Kept, renewal: _Renewal) -> None:
        """Asks for it where its instance is."""
        assert kept.node_id is not None

        def waits(reason: str) -> None:
            kept.lacks = reason

        there = evolve(kept.demand, place_on=(), only_on=frozenset({kept.node_id}))
        try:
            with renewal.scope:
                kept.claim = await self.engine.claim(kept.claim_id, there, prefer=kept.node_id, waits=waits)
                kept.lacks = ""
        except InvalidRequest as problem:
            kept.lacks = problem.message
        finally:
            del self._renewals[instance_id]
            renewal.done.set()
            self._find_lacking()
            self._nodes.news.unpark_all()
