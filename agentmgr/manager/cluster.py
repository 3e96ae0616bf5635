"""The nodes of a manager that was started with `--cluster`, wired. Only then is this imported."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Self

import trio
from attrs import evolve

from ..ca import Authority
from ..cluster.bundles import Bundles
from ..cluster.claims import Claims
from ..cluster.gateways import ClusterGateways
from ..cluster.joining import INVITED_S, Joining
from ..cluster.launcher import ClusterLauncher
from ..cluster.listener import ClusterListener
from ..cluster.node_handle import NodeHandle
from ..cluster.nodes import Nodes
from ..cluster.remote_sessions import RemoteSessions
from ..core import cluster_fields, leases
from ..core.hosts import is_loopback
from ..core.placement import Candidate
from ..credentials import MANAGER, Credentials
from ..dialing import NODE_PROTOCOL
from ..errors import AgentManagerError, CannotUseCluster, StorageError
from ..generation import Generation, begin, note_replaced, replaced
from ..journal import sqlite_archive
from ..journal.archive import ArchiveFigures, Found
from ..models import Event, Invitation, Node, NodeRecord, Service, ServiceSpec
from ..models.members import unique_name
from ..models.nodes import NodeState, label
from ..node.draining import DRAIN_PROTOCOL
from ..process.listening import open_listeners
from ..process.paths import RuntimePaths
from ..settings import ClusterMode, Settings
from ..storage.store import Snapshot, Store
from ..supervisor.environment import OF_RAY
from ..supervisor.local import LocalLauncher
from ..worker.dial import WORKER_PROTOCOL
from .cluster_ray import exposure, listen_host, own_host, ray_engine
from .doctor import Finding
from .listeners import ManagerListeners
from .node_doctor import examine_nodes
from .node_drain import drain_for
from .node_views import shown
from .node_workers import NodeWorkers
from .session_moves import SessionMover

if TYPE_CHECKING:
    from .control_plane import ControlPlane

logger = logging.getLogger(__name__)

_RENEW_EVERY_S = 3600.0
_EVERYWHERE = ("", "0.0.0.0", "::")


class JoinedCluster:
    """The nodes that have joined, and the manager's own machine."""

    def __init__(
        self,
        settings: Settings,
        paths: RuntimePaths,
        authority: Authority,
        generation: Generation,
        own: NodeRecord,
        store: Store,
        snapshot: Snapshot,
        listeners: list[trio.SocketListener],
    ) -> None:
        self._plane: ControlPlane | None = None
        self._settings, self._authority, self._listeners = settings, authority, listeners
        self.host = own_host(settings)  #: the address of this machine
        self.cluster_id = authority.fingerprint[:16]
        self.port: int = listeners[0].socket.getsockname()[1]
        self.generation = generation
        self.newer: Generation | None = None  #: the one that has replaced this manager
        self.replaced = trio.Event()  #: this manager is to end
        self.nodes = Nodes(
            generation.manager_id,
            own.name,
            labels=own.labels,
            cordoned=own.cordoned,
            lost_after_s=settings.node_lost_after,
            observer=self,
            generation=generation,
        )
        ran = {record.node_id for record in snapshot.instances}
        for node in snapshot.nodes:
            if node.node_id != MANAGER:
                self.nodes.add(
                    node.node_id,
                    node.name,
                    address=node.address,
                    labels=node.labels,
                    cordoned=node.cordoned,
                    ran=node.node_id in ran,
                )
        self.claims: Claims | None = None
        if settings.cluster is ClusterMode.RAY:
            self.claims = Claims(ray_engine(self, settings), self.cluster_id, self.nodes)
        self.launcher = ClusterLauncher(
            LocalLauncher(
                paths.logs,
                paths.sessions,
                fork_server=settings.fork_server,
                preload_max=settings.preload_max,
                withheld=None if self.claims is None else OF_RAY,
                sessions_url=settings.sessions_url,
            ),
            self.nodes,
            check_interval_s=settings.health_check_interval,
            sessions_url=settings.sessions_url,
            shipping=Bundles(paths.directory / "bundles", own=(paths.directory, *paths.of_sqlite)),
            claims=self.claims,
            is_closed=lambda service_id, node_id: self.moves.is_closed(service_id, node_id),
        )
        self.moves = SessionMover(
            store,
            snapshot.journal_places,
            self.nodes,
            self.launcher.placed,
            paths.sessions,
            settings.sessions_url,
        )
        self.sessions = RemoteSessions(self.nodes, self.nodes.get, self.moves)
        self.gateways = ClusterGateways(self.nodes, settings, lease_s=leases.LEASE_S)
        self.node_workers = NodeWorkers(self.gateways, paths.workers)
        self.gate_host = self.host  #: of the gate of this machine
        self.credentials = paths.cluster  #: the directory of its own
        self.joining: Joining
        self._credentials = Credentials(paths.cluster)
        self._open = trio.CancelScope()  # the links of all other machines
        self._workers_served = trio.Event()
        self._described = set[str]()  # ids of nodes whose description is to be written
        self._news = trio.Event()

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        settings: Settings,
        paths: RuntimePaths,
        store: Store,
        snapshot: Snapshot,
        listeners: ManagerListeners,
    ) -> AsyncIterator[Self]:
        """Raises `CannotUseCluster`, `ManagerReplaced`, `PortNotAvailable`, `InvalidRequest` and
        `StorageError`.
        """
        _refuse_copies(snapshot, paths)
        authority = await trio.to_thread.run_sync(Authority.open, paths.cluster)
        manager_id = f"man_{secrets.token_hex(8)}"
        generation = await trio.to_thread.run_sync(begin, paths.cluster, manager_id, authority)
        own = await _own_record(store, snapshot, dict(map(label, settings.node_labels)))
        host, port = listen_host(settings), settings.cluster_port
        with ExitStack() as stack:
            sockets = await open_listeners(host, port)
            for listener in sockets:
                stack.callback(listener.socket.close)
            self = cls(settings, paths, authority, generation, own, store, snapshot, sockets)
            others = [node for node in snapshot.nodes if node.node_id != MANAGER]
            self.joining = Joining(
                store,
                authority,
                self.nodes,
                [own, *others],
                await store.join_secrets(),
                self._joined,
                self.node_obeys,
            )
            stack.enter_context(listeners.named("cluster", host, self.port, tls=True))
            yield self

    async def run(
        self, plane: ControlPlane, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Lets nodes in, and judges them, until cancelled."""
        self._plane = plane

        async def serve_worker(stream: trio.abc.Stream, node_id: str) -> None:
            await self._workers_served.wait()
            await plane.worker_manager.serve_stream(stream, node_id)

        async def serve_drain(stream: trio.abc.Stream, node_id: str) -> None:
            await drain_for(plane, self, stream, node_id)

        serving = {
            NODE_PROTOCOL: self._serve_node,
            WORKER_PROTOCOL: serve_worker,
            DRAIN_PROTOCOL: serve_drain,
        }
        listener = ClusterListener(self._credentials, self.joining, self._authority.pem, serving)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.nodes.run)
            nursery.start_soon(self.gateways.run)
            nursery.start_soon(self._keep_certificate)
            nursery.start_soon(self._write_descriptions)
            await nursery.start(self._listen, listener)
            if self.claims is not None:
                nursery.start_soon(self.claims.run)
            task_status.started()

    async def _listen(self, listener: ClusterListener, *, task_status: trio.TaskStatus[None]) -> None:
        with self._open:
            await listener.serve(self._listeners, task_status=task_status)

    async def move_sessions(self) -> None:
        """Until cancelled; from when all is adopted."""
        plane = self._plane
        assert plane is not None
        await self.moves.run(
            plane.registry.by_id.get,
            self.figures,
            changed=plane.publisher.changed,
            published=plane.publisher.published,
            announce=plane.events.announce,
        )

    async def figures(self, node_id: str) -> Found[ArchiveFigures]:
        """Of all journals on that node. Raises `StorageError`."""
        assert self._plane is not None
        if node_id:
            return Found(*await self.sessions.read(node_id, sqlite_archive.figures))
        return await self._plane.sessions.figures_here()

    def let_workers_in(self) -> None:
        """From now on `plane.worker_manager` runs."""
        self._workers_served.set()

    async def _serve_node(self, stream: trio.abc.Stream, node_id: str) -> None:
        await self.nodes.serve(node_id, stream)

    def nodes_left(self) -> frozenset[str]:
        """The ids of those that are not lost."""
        return frozenset(it.node_id for it in self.nodes if it.state is not NodeState.LOST)

    def candidates(self) -> list[Candidate]:
        return self.nodes.candidates()

    def troubles(self) -> tuple[str, ...]:
        of_claims = () if self.claims is None else self.claims.troubles()
        return (*self.nodes.troubles(), *self.gateways.troubles(), *self.moves.troubles(), *of_claims)

    def check_fields(self, spec: ServiceSpec) -> None:
        """Raises `InvalidRequest` for what this cluster cannot do."""
        cluster_fields.check(spec, reserves=self.claims is not None)

    def remarks(self, spec: ServiceSpec) -> tuple[str, ...]:
        """What of it no node that is known can do, though one may come that can."""
        found = cluster_fields.unplaceable(spec, self.nodes.candidates())
        if self.claims is not None:
            machines = [machine.resources for machine in self.claims.machines()]
            found += cluster_fields.unmet(spec.config, machines)
        return found

    # For those who operate it

    def nodes_shown(self) -> list[Node]:
        """The manager's own machine first, then by name."""
        assert self._plane is not None
        return shown(self._plane, self)

    def get(self, ref: str) -> Node:
        """Raises `NodeNotFound`."""
        node_id = self.joining.find(ref).node_id
        return next(node for node in self.nodes_shown() if node.node_id == node_id)

    async def invite(self, uses: int = 1, expires_s: float = INVITED_S) -> Invitation:
        """Raises `InvalidRequest`."""
        kept, secret = await self.joining.invite(uses, expires_s)
        host = socket.gethostname() if self.host in _EVERYWHERE else self.host
        return Invitation(str(secret), kept.expires_at, kept.uses, host, self.port)

    async def invite_machine(self) -> str:
        """A secret for one machine of the engine."""
        return str((await self.joining.invite())[1])

    async def forget(self, ref: str) -> Node:
        """Raises `NodeNotFound`, `Conflict`."""
        node = self.get(ref)
        await self.joining.forget(ref, linked=self._is_linked)
        self._announce("node.forgotten", node.name)
        if self._plane is not None:
            self._plane.publisher.changed()
        return node

    async def cordon(self, ref: str, cordoned: bool, *, by_itself: bool = False) -> Node:
        """Raises `NodeNotFound`."""
        return self.get((await self.joining.cordon(ref, cordoned, by_itself=by_itself)).name)

    def _is_linked(self, node_id: str) -> bool:
        return (handle := self.nodes.get(node_id)) is not None and handle.linked

    async def examine(self, services: Sequence[Service]) -> list[Finding]:
        """What is wrong with the nodes that are to run these services, and with where they join."""
        findings, host = await examine_nodes(self.nodes, services), self.host
        if is_loopback(host) and not any(self.nodes):
            advice = f"`agentmgr daemon --cluster {self._settings.cluster} --cluster-host ADDRESS`"
            seen = f"other machines cannot join: its listener is at {host}, port {self.port}"
            findings.append(Finding("cluster", "warning", seen, advice))
        if self.claims is not None and (exposed := exposure(self._settings)) is not None:
            findings.append(exposed)
        return findings

    # What happens to nodes (`NodesObserver`, and `Joining`)

    def _joined(self, record: NodeRecord) -> None:
        self._announce("node.joined", record.name, address=record.address)

    def node_changed(self, node_id: str, state: NodeState, reason: str) -> None:
        if state is NodeState.SILENT and self.claims is not None:
            self.claims.engine.revive(node_id)
        if self._plane is not None:
            if self.joining.is_back(node_id):
                self._described.add(node_id)
                self._news.set()
            self._announce(f"node.{state}", self.nodes.name_of(node_id), reason=reason)
            self._plane.publisher.changed()

    def node_described(self, handle: NodeHandle) -> None:
        self._described.add(handle.node_id)
        self._news.set()

    def node_obeys(self, node_id: str, newer: Generation) -> None:
        if not self.generation.yields_to(newer):
            return
        if self._authority.has_signed(newer.signed, newer.signature):
            self.give_way(newer)
        else:
            logger.error(
                "node %s claims to obey a newer manager, and cannot prove it: it is not let in",
                self.nodes.name_of(node_id),
            )

    def give_way(self, newer: Generation) -> None:
        """To a manager that has replaced this one: what runs on nodes is left to it, and this one ends."""
        if self.newer is not None:
            return
        self.newer = newer
        logger.error("%s", replaced(newer))
        try:
            note_replaced(self.credentials, newer)
        except CannotUseCluster as error:
            logger.error("the next manager that is started here will not know it at once: %s", error)
        self.nodes.retire()
        self._open.cancel()
        self.replaced.set()

    def _announce(self, kind: str, node: str, **detail: str) -> None:
        if self._plane is not None:  # what it finds at its start is no news
            self._plane.events.announce(Event(kind, detail={"node": node, **detail}))

    async def _write_descriptions(self) -> None:
        while True:
            await self._news.wait()
            self._news = trio.Event()
            described, self._described = self._described, set()
            for node_id in described:
                try:
                    await self.joining.describe(node_id)
                except StorageError as error:
                    logger.error("cannot write down what node %s is now: %s", node_id, error)

    async def _keep_certificate(self) -> None:
        """Renews the manager's own."""
        while True:
            await trio.sleep(_RENEW_EVERY_S)
            try:
                if await trio.to_thread.run_sync(self._authority.renew_own):
                    logger.info("the manager has a new certificate for its cluster")
            except (OSError, ValueError, AgentManagerError) as error:
                logger.error("the manager's certificate cannot be renewed: %s", error)


def _refuse_copies(snapshot: Snapshot, paths: RuntimePaths) -> None:
    """Of a database that was copied without its directory: it would start a second one of all that its nodes
    run, which cannot link with it. Raises `CannotUseCluster`.
    """
    names = sorted(node.name for node in snapshot.nodes if node.node_id != MANAGER)
    if names and not Authority.is_in(paths.cluster):
        raise CannotUseCluster(
            f"the database knows {'nodes' if names[1:] else 'node'} {', '.join(names)}, and "
            f"{paths.cluster} has no CA of theirs: it is a copy, or its directory was removed; bring both "
            "back with `agentmgr restore FILE`, or leave its nodes out: `agentmgr restore --as-new FILE`"
        )


async def _own_record(store: Store, snapshot: Snapshot, labels: Mapping[str, str]) -> NodeRecord:
    """The manager's machine: named for its host, which may be another one since the database was moved."""
    host = socket.gethostname()
    known = next((node for node in snapshot.nodes if node.node_id == MANAGER), None)
    taken = frozenset(node.name for node in snapshot.nodes if node is not known)
    wanted = unique_name(host, frozenset())
    if known is not None and (known.name == wanted or known.name.startswith(f"{wanted}-")):
        name = known.name
    else:
        name = unique_name(host, taken)
    own = evolve(known or NodeRecord(MANAGER, name), name=name, labels=labels)
    if own != known:
        await store.put_node(own)
    return own
