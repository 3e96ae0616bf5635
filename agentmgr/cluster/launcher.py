"""The launcher of a cluster: the manager's own machine (node "") and each node that has joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import trio

from ..core.amounts import asked
from ..core.cluster_fields import unreservable
from ..core.placement import Candidate, Nowhere, Placed, Wish, place
from ..core.restart import Cause
from ..errors import AgentManagerError, WrongState
from ..models import ForkServerState, InstanceRecord, ServiceSpec, Usage
from ..models.nodes import OnNodeLoss, Spread, one_node, selectors
from ..node.logs import MoveLogs
from ..node.protocol import EndLease, ForgetService
from ..supervisor.launcher import CannotLaunch, Child, GpuIds, Launcher, Slot
from ..supervisor.log_source import LogSource
from .claims import Claims
from .node_handle import NodeHandle
from .remote_log import MovingLog, RemoteLog, newest
from .remote_slot import NothingShipped, RemoteSlot, Shipping

SETTLE_S = 3.0
"""Longer than a daemon takes to link with a manager that has started anew: else all that should run would be
placed on the manager's own machine, the only one that is linked then."""
ENGINE_SETTLE_S = 10.0
"""The same where an engine has first to be asked, and then to start daemons: 4 s were measured with Ray."""


_LOOKS = 50  #: for a node, before other tasks have their turn: 10 ms among 100 nodes


_SHORTAGES = 2
"""So often an instance meets a shortage on a node before it tries another one, away from its sessions."""


class Members(Protocol):
    """The nodes that the manager knows (`cluster.nodes`)."""

    @property
    def news(self) -> trio.lowlevel.ParkingLot:
        """Unparked at each change that placement may care about."""

    def __iter__(self) -> Iterator[NodeHandle]: ...

    def get(self, node_id: str) -> NodeHandle | None: ...

    def candidates(self) -> list[Candidate]:
        """All, with the manager's own machine (node id "")."""

    def name_of(self, node_id: str) -> str: ...

    def know_all(self) -> None:
        """From now on what a node runs that is not attached to its handle is a stray, and ended."""


class ClusterSlot:
    """Implements `supervisor.launcher.Slot`: a slot on one node after another."""

    def __init__(
        self,
        launcher: ClusterLauncher,
        spec: ServiceSpec,
        instance_id: str,
        position: int,
        leased: str | None = None,
    ) -> None:
        """`leased`: the node that keeps a port for it."""
        self._launcher, self._leased = launcher, leased
        self._spec, self._instance_id, self._position = spec, instance_id, position
        self._node_id = ""
        self._slot: Slot | RemoteSlot | None = None  #: on that node
        self._shortages = Counter[str]()  # by node, since it was launched last

    async def place(self, waits: Callable[[str], None]) -> trio.Semaphore:
        nodes, placed = self._launcher.nodes, self._launcher.placed
        await self._launcher.settled(waits)
        claims, config = self._launcher.claims, self._spec.config
        if claims is None and (why := unreservable(config)) is not None:
            raise CannotLaunch(Cause.CANNOT_EXECUTE, why)  # it was registered before there was a cluster
        if claims is not None and asked(config):
            node_id = await claims.obtain(self._instance_id, self._wish(), config, waits)
        else:
            while isinstance(found := await self._look(), Nowhere):
                placed.remove(self._instance_id)
                waits(found.reason)
                await nodes.news.park()
            node_id = found
        while self._launcher.is_closed(self._spec.service_id, node_id):
            waits(f"waits until the sessions that are leaving node {nodes.name_of(node_id)} have left")
            await nodes.news.park()
        try:
            self._be_on(node_id)
        except AgentManagerError as error:
            raise CannotLaunch(Cause.CANNOT_EXECUTE, str(error)) from None
        assert self._slot is not None
        if isinstance(self._slot, RemoteSlot):
            await trio.lowlevel.checkpoint()
            return self._slot.handle.starts
        return await self._slot.place(waits)

    async def _look(self) -> str | Nowhere:
        """For a node. Each waits its turn: a change of one node may wake 10,000 that look, and the links of
        all others must not fall silent meanwhile.
        """
        launcher = self._launcher
        async with launcher.looks:
            await trio.lowlevel.checkpoint()
            return place(self._wish(), launcher.nodes.candidates(), launcher.placed)

    def _wish(self) -> Wish:
        spec, config, placed = self._spec, self._spec.config, self._launcher.placed
        waits = config.on_node_loss == OnNodeLoss.WAIT
        return Wish(
            spec.service_id,
            self._position,
            selectors(config.place_on),
            pack=config.spread == Spread.PACK,
            bound_to=placed.last(spec.service_id, self._position) if waits else None,
            short_on=frozenset(it for it, times in self._shortages.items() if times >= _SHORTAGES),
        )

    def _be_on(self, node_id: str) -> None:
        leased, self._leased = self._leased, None
        if leased is not None and leased != node_id:
            self._launcher.end_lease_on(leased, self._instance_id)
        if self._slot is None or node_id != self._node_id:
            if self._slot is not None:
                self._slot.close()
                self._slot = None
            self._slot = self._launcher.slot_on(node_id, self._spec, self._instance_id, self._position)
            self._node_id = node_id
        self._launcher.placed.put(self._instance_id, self._spec.service_id, self._position, node_id)
        if self._launcher.claims is not None:
            self._launcher.claims.update_holds()

    async def launch(self, gpus: GpuIds = None) -> Child:
        if self._slot is None:
            raise CannotLaunch(Cause.SHORTAGE, "no node was chosen for it")
        if (claims := self._launcher.claims) is not None:
            gpus = claims.gpus(self._instance_id)
        try:
            child = await self._slot.launch(gpus)
        except CannotLaunch as problem:
            if problem.cause is Cause.SHORTAGE:
                self._shortages[self._node_id] += 1
            raise
        self._shortages.clear()
        return child

    def adopt(self, record: InstanceRecord) -> Child | None:
        if record.node_id and self._launcher.nodes.get(record.node_id) is None:
            return None  # the node was forgotten
        self._be_on(record.node_id)
        assert self._slot is not None
        child, claims = self._slot.adopt(record), self._launcher.claims
        if child is not None and claims is not None and asked(self._spec.config):
            claims.keep(self._instance_id, self._spec.config, record.node_id, record.gpus)
        return child

    def gains_by_end_of(self, instance_id: str) -> bool:
        claims = self._launcher.claims
        return claims is not None and claims.makes_room(instance_id, self._instance_id)

    def close(self, *, lease: bool = False, leave: bool = False) -> None:
        self._launcher.placed.remove(self._instance_id)
        if (claims := self._launcher.claims) is not None:
            if leave:
                claims.forget(self._instance_id)
            else:
                claims.release(self._instance_id)
                claims.update_holds()
        if self._slot is not None:
            self._slot.close(lease=lease)
            self._leased = self._node_id if lease else None
        elif self._leased is not None and not lease:  # it was stopped before there was a node for it
            self._launcher.end_lease_on(self._leased, self._instance_id)
            self._leased = None
        if self._leased is not None:
            self._launcher.leases[self._instance_id] = self._leased


class ClusterLauncher:
    """Implements `supervisor.launcher.Launcher`, with `local` as the manager's own machine."""

    def __init__(
        self,
        local: Launcher,
        nodes: Members,
        *,
        check_interval_s: float,
        shipping: Shipping | None = None,
        claims: Claims | None = None,
        sessions_url: str | None = None,
        is_closed: Callable[[str, str], bool] = lambda service_id, node_id: False,
    ) -> None:
        """`check_interval_s`: of services whose configuration has none. `claims`: None without an engine.
        `sessions_url`: of the manager's network journal, if it has one. `is_closed`: whether nothing of that
        service may be started on that node now, until the news say otherwise.
        """
        self.nodes, self.claims, self.is_closed = nodes, claims, is_closed
        self.placed = Placed() if claims is None else claims.placed
        self.leases: dict[str, str] = {}  #: the node that keeps a port for an instance, by its id
        self.looks = trio.CapacityLimiter(_LOOKS)
        self._local = local
        self._settled = trio.Event()
        self._shipping = shipping or NothingShipped()
        self._sessions_url = sessions_url
        self._check_interval_s = check_interval_s

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._settle)
            await self._local.run()
            nursery.cancel_scope.cancel()

    async def _settle(self) -> None:
        claims = self.claims
        with trio.move_on_after(SETTLE_S if claims is None else ENGINE_SETTLE_S):
            while not (all(handle.linked for handle in self.nodes) and (claims is None or claims.settled)):
                await self.nodes.news.park()
        self._settled.set()

    async def settled(self, waits: Callable[[str], None]) -> None:
        """Waits until the known nodes have linked, for some seconds after the manager has started."""
        if not self._settled.is_set():
            waits("waits for the nodes to link, as the manager has just started")
            await self._settled.wait()

    def slot(self, spec: ServiceSpec, instance_id: str, position: int) -> ClusterSlot:
        return ClusterSlot(self, spec, instance_id, position, self.leases.pop(instance_id, None))

    def slot_on(self, node_id: str, spec: ServiceSpec, instance_id: str, position: int) -> Slot | RemoteSlot:
        """Raises `CannotLaunch` where the node was forgotten just now."""
        if not node_id:
            return self._local.slot(spec, instance_id, position)
        if (handle := self.nodes.get(node_id)) is None:
            raise CannotLaunch(Cause.SHORTAGE, "its node was forgotten")
        return RemoteSlot(
            handle,
            spec,
            instance_id,
            position,
            check_interval_s=self._check_interval_s,
            shipping=self._shipping,
            sessions_url=self._sessions_url,
        )

    def bound(self, spec: ServiceSpec, position: int, node_id: str) -> str | None:
        """Why no other node than that one can run it now; None: another one can."""
        if spec.config.on_node_loss == OnNodeLoss.WAIT:
            return (
                "it must never be there twice (on_node_loss=wait), so none is started beside it: "
                f"`agentmgr stop {spec.name}` ends it"
            )
        if self.claims is not None and asked(spec.config) and one_node(spec.config.place_on) is None:
            return None  # the engine may add a machine
        others = [node for node in self.nodes.candidates() if node.node_id != node_id]
        found = place(Wish(spec.service_id, position, selectors(spec.config.place_on)), others, Placed())
        return found.reason.replace("waits for", "it needs", 1) if isinstance(found, Nowhere) else None

    def end_lease(self, instance_id: str) -> None:
        self.end_lease_on(self.leases.pop(instance_id, ""), instance_id)

    def end_lease_on(self, node_id: str, instance_id: str) -> None:
        if not node_id:
            self._local.end_lease(instance_id)
        elif (handle := self.nodes.get(node_id)) is not None:
            handle.post(EndLease(instance_id))

    def stranger(self, record: InstanceRecord) -> str | None:
        return None if record.node_id else self._local.stranger(record)

    async def sweep(self, keep: frozenset[str]) -> int:
        """Of this machine; each node's daemon sweeps at its own start, and ends its strays as it links."""
        self.nodes.know_all()
        if self.claims is not None:
            self.claims.know_all()
        return await self._local.sweep(keep)

    def open_log(self, spec: ServiceSpec, position: int) -> LogSource:
        def node_now() -> str | None:
            return self.placed.last(spec.service_id, position)

        return MovingLog(partial(self._find_log, spec, position, node_now), node_now)

    async def _find_log(
        self, spec: ServiceSpec, position: int, node_now: Callable[[], str | None]
    ) -> tuple[str, LogSource]:
        """Where it is; where no instance was seen at that position, wherever one was written to last."""
        node_id = node_now()
        here = self._local.open_log(spec, position)
        if node_id is None:
            node_id = await newest(here, [RemoteLog(it, spec.name, position) for it in self.nodes])
        if not node_id:
            return "", here
        if (handle := self.nodes.get(node_id)) is None:
            raise WrongState("the log was lost with the node that it was on, which was forgotten")
        return node_id, RemoteLog(handle, spec.name, position)

    def move_logs(self, old: str, new: str) -> None:
        self._local.move_logs(old, new)
        for handle in self.nodes:
            handle.post(MoveLogs(old, new))

    def troubles(self) -> tuple[str, ...]:
        of_nodes = (
            f"node {handle.name}: {trouble}"
            for handle in self.nodes
            if handle.figures is not None and handle.linked
            for trouble in handle.figures.troubles
        )
        return (*self._local.troubles(), *of_nodes)

    def fork_servers(self) -> tuple[ForkServerState, ...]:
        of_nodes = (
            state
            for handle in self.nodes
            if handle.figures is not None and handle.linked
            for state in handle.figures.fork_servers
        )
        return (*self._local.fork_servers(), *of_nodes)

    def forget(self, service_id: str) -> None:
        self.placed.forget(service_id)
        self._local.forget(service_id)
        for handle in self.nodes:
            if handle.linked:  # another one's daemon forgets it with its last instance
                handle.post(ForgetService(service_id))

    def preloaded(self, service_id: str) -> str | None:
        if (here := self._local.preloaded(service_id)) is not None:
            return here
        known = (handle.figures.preloaded for handle in self.nodes if handle.figures is not None)
        return next((it[service_id] for it in known if service_id in it), None)

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        node_id = self.placed.node_of(instance_id)
        handle = self.nodes.get(node_id) if node_id else None
        return self._local.usage(instance_id) if handle is None else handle.usage(instance_id)

    def node_name(self, node_id: str) -> str:
        return self.nodes.name_of(node_id)
