"""The slot of an instance on another node."""

from __future__ import annotations

from typing import Protocol

import trio
from attrs import evolve

from ..core.restart import Cause
from ..models import InstanceRecord, ServiceSpec, network_journal, new_id
from ..models.network_journal import SESSIONS_URL
from ..node.bundles import Shipment
from ..node.protocol import CannotStart, Launch, Launched, NeedsBundle
from ..supervisor import environment
from ..supervisor.launcher import CannotLaunch, GpuIds
from .node_handle import NodeHandle, NodeLost, OrderFailed
from .remote_child import RemoteChild


class Shipping(Protocol):
    """Brings the directories of agent files to nodes (`cluster.bundles`)."""

    async def shipment(self, spec: ServiceSpec) -> Shipment | None:
        """What it needs on its node; None: nothing. Raises `CannotLaunch`."""

    async def send(self, handle: NodeHandle, shipment: Shipment) -> None:
        """Returns when the node has it; it goes there once for each digest, however many launches wait.

        Raises `CannotLaunch`, `NodeLost`, `OrderFailed`.
        """


class NothingShipped:
    """Each node has all files already."""

    async def shipment(self, spec: ServiceSpec) -> Shipment | None:
        await trio.lowlevel.checkpoint()
        return None

    async def send(self, handle: NodeHandle, shipment: Shipment) -> None:
        raise AssertionError("nothing is to be sent")


class RemoteSlot:
    """An instance's slot on the node of `handle`: the part of `supervisor.launcher.Slot` after `place`."""

    def __init__(
        self,
        handle: NodeHandle,
        spec: ServiceSpec,
        instance_id: str,
        position: int,
        *,
        check_interval_s: float,
        shipping: Shipping,
        sessions_url: str | None = None,
    ) -> None:
        """`sessions_url`: of the manager's network journal, if it has one."""
        self.handle = handle
        self._spec, self._instance_id, self._position = spec, instance_id, position
        self._check_interval_s, self._shipping = check_interval_s, shipping
        self._sessions_url = sessions_url
        handle.open_slot(instance_id)

    async def launch(self, gpus: GpuIds = None) -> RemoteChild:
        """Raises `CannotLaunch`."""
        handle = self.handle
        try:
            return await self._launch(gpus)
        except NodeLost as lost:
            cause = Cause.NODE_LOST if lost.sent else Cause.SHORTAGE
            raise CannotLaunch(cause, f"node {handle.name} was lost ({lost.reason})") from None
        except OrderFailed as problem:
            raise CannotLaunch(Cause.SHORTAGE, f"node {handle.name} cannot launch it: {problem}") from None

    async def _launch(self, gpus: GpuIds) -> RemoteChild:
        handle = self.handle
        if not handle.linked:  # it was, when it was chosen
            raise CannotLaunch(Cause.SHORTAGE, f"node {handle.name} is silent: {handle.unlinked_why}")
        digest = environment.digest(self._spec.config)  # before it is read: a change between is seen later
        config = environment.with_file(self._spec.config)
        if (url := config.journal_url(self._sessions_url)) is not None:
            address = network_journal.of_service(environment.expanded(url), self._spec.service_id)
            config = evolve(config, env={**config.env, SESSIONS_URL: address})
        spec = evolve(self._spec, config=config)
        shipment = await self._shipping.shipment(spec)
        while True:
            order = Launch(
                new_id("try"), self._instance_id, self._position, spec, self._check_interval_s, shipment, gpus
            )
            match await handle.ask(order):
                case Launched(record, unenforced, completes):
                    # Nothing waits from the answer to here: else it would count as a stray.
                    record = evolve(record, node_id=handle.node_id, digest=digest)
                    return RemoteChild(handle, self._spec, record, unenforced=unenforced, completes=completes)
                case CannotStart(cause, reason):
                    if shipment is None and Cause[cause] is Cause.CANNOT_EXECUTE:
                        reason += " (no directory was sent there; `--ship DIR` of a service sends one)"
                    raise CannotLaunch(Cause[cause], f"on node {handle.name}: {reason}")
                case NeedsBundle() if shipment is not None:
                    await self._shipping.send(handle, shipment)
                case other:
                    raise OrderFailed(f"it has answered {type(other).__name__}")

    def adopt(self, record: InstanceRecord) -> RemoteChild:
        """Whether it still lives is known when its node links; until then it is taken to."""
        return RemoteChild(self.handle, self._spec, record)

    def close(self, *, lease: bool = False, leave: bool = False) -> None:
        self.handle.close_slot(self._instance_id, lease=lease)
