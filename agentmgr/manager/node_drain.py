"""Empties a node, before its machine is taken away: what it runs is moved to other nodes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import trio

from ..errors import AgentManagerError, StorageError
from ..models import DrainedNode, Event, Instance, ServiceStatus, StaysThere
from ..node.draining import Drained, DrainMe, asked
from ..node.talk import talk

if TYPE_CHECKING:
    from ..cluster.launcher import ClusterLauncher
    from ..supervisor import Supervisor
    from .cluster import JoinedCluster
    from .control_plane import ControlPlane

_ENDING = (ServiceStatus.DRAINING, ServiceStatus.STOPPING)


async def drain(
    plane: ControlPlane, cluster: JoinedCluster, ref: str, timeout_s: float, *, by_itself: bool = False
) -> DrainedNode:
    """Cordons it, and moves what runs there, all at once: each instance is drained and ended when one that
    takes its place is ready elsewhere. What cannot move runs on, and so does what has not moved in time:
    successors have to start in it, and turns to end (`drain_timeout` of each service).

    A job is not interrupted: its end is waited for. The sessions that are kept there move too, unless their
    service stays. To drain a node again goes on with what is left. `by_itself`: the node has asked for it,
    and its next daemon lifts the cordon. Raises `NodeNotFound`.
    """
    node = await cluster.cordon(ref, True, by_itself=by_itself)
    work = NodeDrain(plane.supervisor, cluster.launcher, node.node_id)
    unread: tuple[str, ...] = ()
    with trio.move_on_after(timeout_s):
        await work.run()
        try:
            await cluster.moves.empty(node.node_id, partial(cluster.figures, node.node_id))
        except StorageError as error:
            unread = (f"its sessions cannot be read: {error.message}",)
    sessions_left = (*unread, *cluster.moves.left_on(node.node_id))
    done = DrainedNode(node.name, work.moved, tuple(work.left()), sessions_left)
    plane.events.announce(
        Event("node.drained", detail={"node": node.name, "moved": done.moved, "left": len(done.left)})
    )
    return done


async def drain_for(
    plane: ControlPlane, cluster: JoinedCluster, stream: trio.abc.Stream, node_id: str
) -> None:
    """As `drain`, for the node at the other end of this connection, as long as that is there."""
    link = asked(stream)
    async with trio.open_nursery() as nursery:

        async def work(ask: DrainMe) -> None:
            try:
                link.put(Drained(await drain(plane, cluster, node_id, ask.timeout_s, by_itself=True)))
            except AgentManagerError as error:
                link.put(Drained(None, error.message))

        await talk(link, lambda ask: nursery.start_soon(work, ask))
        nursery.cancel_scope.cancel()


class NodeDrain:
    """Of a node that is cordoned."""

    def __init__(self, supervisor: Supervisor, launcher: ClusterLauncher, node_id: str) -> None:
        self._supervisor, self._launcher, self._node_id = supervisor, launcher, node_id
        self._seen = set[str]()  # ids of the instances that ran there
        self._left: dict[str, str] = {}  # why an instance has not moved, by its id

    async def run(self) -> None:
        """Returns when nothing runs there that could move or end."""
        async with trio.open_nursery() as nursery:
            for service_id in {instance.service_id for instance in self._here().values()}:
                nursery.start_soon(self._empty, service_id)

    @property
    def moved(self) -> int:
        """How many ran there and do not any more."""
        return len(self._seen - self._here().keys())

    def left(self) -> Iterator[StaysThere]:
        """What runs there still, and why."""
        for instance_id, instance in self._here().items():
            name = self._supervisor.spec(instance.service_id).name
            reason = self._left.get(instance_id) or self._standing(instance)
            yield StaysThere(name, instance_id, instance.slot, reason)

    def _here(self, service_id: str | None = None) -> dict[str, Instance]:
        """What runs there, or is being started there, by instance id."""
        node_of = self._launcher.placed.node_of
        return {
            instance.instance_id: instance
            for instance in self._supervisor.instances(service_id)
            if instance.pid is not None or instance.status is ServiceStatus.STARTING
            if node_of(instance.instance_id) == self._node_id
        }

    async def _empty(self, service_id: str) -> None:
        tried = set[str]()
        while here := self._here(service_id):
            self._seen |= here.keys()
            if movable := {key for key, it in here.items() if self._can_move(it)} - tried:
                tried |= movable
                try:
                    await self._supervisor.move(service_id, movable, self._left)
                except AgentManagerError as error:  # it is stopped, or unregistered
                    self._left |= dict.fromkeys(movable, error.message)
            elif any(it.status in _ENDING or self._is_job(it) for it in here.values()):
                await self._supervisor.changed()
            else:
                break

    def _can_move(self, instance: Instance) -> bool:
        if instance.status in _ENDING or self._is_job(instance):
            return False
        spec = self._supervisor.spec(instance.service_id)
        if (why := self._launcher.bound(spec, instance.slot, self._node_id)) is not None:
            self._left[instance.instance_id] = why
        return why is None

    def _is_job(self, instance: Instance) -> bool:
        return self._supervisor.spec(instance.service_id).config.is_job

    def _standing(self, instance: Instance) -> str:
        if instance.status in _ENDING:
            return f"it is {instance.status}"
        return "it is a job, and has not ended yet" if self._is_job(instance) else "it was started meanwhile"
