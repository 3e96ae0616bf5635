"""One gateway worker, as the manager knows it."""

from __future__ import annotations

import trio
from attrs import asdict, define, evolve, field

from ..core.routing import RoutingTable
from ..link import Link
from ..models import Connection, ConnectionEnd, utc_now
from ..worker import protocol
from ..worker.protocol import Order, Report
from .node_workers import NodeWorker


@define
class RemoteConnection:
    opened: Connection  #: as it was reported when it opened, or was resumed
    reported_at: float  #: when it was last reported
    progress: protocol.Progress | None = None  #: since then, the latest

    @property
    def bytes_from_client(self) -> int:
        return (self.progress or self.opened).bytes_from_client

    @property
    def bytes_to_client(self) -> int:
        return (self.progress or self.opened).bytes_to_client

    def describe(self, now: float) -> Connection:
        """Made when it is asked for: among 100,000 connections each moment has thousands of reports."""
        done = self.progress or protocol.Progress.of(self.opened)
        return evolve(self.opened, **{**asdict(done), "idle_s": done.idle_s + now - self.reported_at})


@define(eq=False)
class WorkerHandle:
    """A worker, from its first message to the end of its process."""

    hello: protocol.Hello
    pid: int  #: on its machine
    node_id: str = ""
    connections: dict[str, RemoteConnection] = field(factory=dict)
    link: Link[Order, Report] | None = None  #: while it answers
    declared: bool = False  #: on this link
    sent: int = 0  #: the version of the table last sent to it
    table: RoutingTable = field(factory=RoutingTable)  #: that one
    applied: int = 0  #: the version by which it routes
    reported_at: float = 0.0  #: when it was last told of the others' seats
    unlinked: trio.Event = field(factory=trio.Event)  #: this link has ended
    unlinked_at: float = field(factory=trio.current_time)  #: when the last one did
    given_up: bool = False  #: its node is lost, and its lease over
    gone: trio.Event = field(factory=trio.Event)  #: its process has exited, and is forgotten

    @property
    def on_node(self) -> NodeWorker:
        return NodeWorker(self.node_id, self.hello.worker_id)

    def silent_since(self) -> float | None:
        return None if self.link is not None else self.unlinked_at

    def ends(self) -> list[ConnectionEnd]:
        """Of the connections that it still had, as it is gone itself."""
        now = trio.current_time()
        return [_lost(live.describe(now), node_lost=self.given_up) for live in self.connections.values()]


def _lost(connection: Connection, *, node_lost: bool) -> ConnectionEnd:
    return ConnectionEnd(
        connection_id=connection.connection_id,
        service_id=connection.service_id,
        instance_id=connection.instance_id,
        started_at=connection.started_at,
        ended_at=utc_now(),
        ended_by="gateway",
        code=None,
        reason="its gateway's node was lost" if node_lost else "the gateway worker that served it has died",
        bytes_from_client=connection.bytes_from_client,
        bytes_to_client=connection.bytes_to_client,
        messages_from_client=connection.messages_from_client,
        messages_to_client=connection.messages_to_client,
    )
