"""The live connections: what each is, how it stands, and its end."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

import trio

from ..core.request import ClientRequest
from ..core.routing import Backend, BackendState, Router
from ..errors import ConnectionNotFound
from ..models import Connection, ConnectionEnd, utc_now
from ..protocol import GOING_AWAY
from .tunnel import Ending, Tunnel

logger = logging.getLogger("agentmgr.gateway")

_GONE_S = 2.0  # what an instance said last may arrive after the table that it is not in any more

SHUTDOWN = Ending("gateway", GOING_AWAY, "the gateway is shutting down")


class ConnectionObserver(Protocol):
    """Called for every client. All methods are quick, do not block and do not raise."""

    def connection_opened(self, connection: Connection) -> None:
        """Client and instance are connected."""

    def connection_closed(self, end: ConnectionEnd) -> None:
        """Once for each connection that was opened."""

    def connection_resumed(self, connection: Connection) -> None:
        """Its instance ended, and another one goes on with it; it had `connection.resumed` such changes."""

    def client_refused(self, code: str) -> None:
        """A client was refused; `code` is a `RefusalCode`."""


class LiveConnection:
    """One client, connected to one instance."""

    __slots__ = (
        "awaits_answer",
        "backend",
        "client_ip",
        "client_port",
        "connection_id",
        "ending",
        "gone_at",
        "handshake_s",
        "is_request",
        "path",
        "resumed",
        "rule",
        "started_at",
        "tunnel",
        "valid_until",
    )  # fmt: skip

    def __init__(
        self,
        connection_id: str,
        *,
        request: ClientRequest,
        backend: Backend,
        rule: str | None,
        tunnel: Tunnel,
        handshake_s: float,
    ) -> None:
        self.connection_id = connection_id
        self.client_ip = request.client_ip
        self.client_port = request.client_port
        self.path = request.bare_path  # without the query, which may carry secrets
        self.backend = backend
        self.rule = rule
        self.tunnel = tunnel
        self.handshake_s = handshake_s
        self.is_request = False  #: HTTP, and no WebSocket
        self.awaits_answer = False  #: of an HTTP request: its instance works on it
        self.resumed = 0  #: how often another instance went on with it
        self.started_at: datetime = utc_now()
        self.ending = SHUTDOWN  # unless something else ends it first
        self.valid_until = math.inf  # when the token that opened it expires
        self.gone_at = math.inf  # when it ends if its instance, on another node, has not said so by then

    def idle_s(self, now: float) -> float:
        """Seconds since the last data frame in either direction."""
        return 0.0 if self.awaits_answer else max(0.0, now - self.tunnel.last_data)

    def describe(self, now: float) -> Connection:
        inbound, outbound = self.tunnel.from_client, self.tunnel.from_backend
        return Connection(
            connection_id=self.connection_id,
            client_ip=self.client_ip,
            client_port=self.client_port,
            service_id=self.backend.service_id,
            service_name=self.backend.service_name,
            instance_id=self.backend.instance_id,
            rule=self.rule,
            path=self.path,
            started_at=self.started_at,
            idle_s=self.idle_s(now),
            bytes_from_client=inbound.bytes,
            bytes_to_client=outbound.bytes,
            messages_from_client=inbound.tracker.messages,
            messages_to_client=outbound.tracker.messages,
            handshake_s=self.handshake_s,
            resumed=self.resumed,
        )

    def end(self) -> ConnectionEnd:
        inbound, outbound = self.tunnel.from_client, self.tunnel.from_backend
        return ConnectionEnd(
            connection_id=self.connection_id,
            service_id=self.backend.service_id,
            instance_id=self.backend.instance_id,
            started_at=self.started_at,
            ended_at=utc_now(),
            ended_by=self.ending.by,
            code=self.ending.code,
            reason=self.ending.reason,
            services_fault=self.ending.services_fault,
            bytes_from_client=inbound.bytes,
            bytes_to_client=outbound.bytes,
            messages_from_client=inbound.tracker.messages,
            messages_to_client=outbound.tracker.messages,
            handshake_s=self.handshake_s,
            first_byte_s=self.tunnel.first_byte_s,
            resumed=self.resumed,
            is_request=self.is_request,
        )


class Connections:
    """All live connections. Opening one and its end are one `with` block, so the list cannot be wrong."""

    def __init__(self, observer: ConnectionObserver | None) -> None:
        self._observer = observer
        self._by_id: dict[str, LiveConnection] = {}
        self._by_instance: dict[str, set[LiveConnection]] = {}
        self._of_service = Counter[str]()  # by its id
        self._ended = trio.Event()

    @contextmanager
    def open(self, connection: LiveConnection) -> Iterator[None]:
        self._by_id[connection.connection_id] = connection
        service_id = connection.backend.service_id  # that of every instance which goes on with it
        self._of_service[service_id] += 1
        self._join(connection)
        try:
            if self._observer is not None:
                self._observer.connection_opened(connection.describe(trio.current_time()))
            yield
        finally:
            del self._by_id[connection.connection_id]
            self._of_service[service_id] -= 1
            if not self._of_service[service_id]:
                del self._of_service[service_id]
            self.adrift(connection)
            end = connection.end()
            # repr: the reason may be text of a peer, and must not begin a new line of the log.
            logger.info(
                "connection to %s ended by %s: code %s, %r",
                connection.backend.service_name, end.ended_by, end.code, end.reason,
                extra={"connection_id": end.connection_id, "instance_id": end.instance_id},
            )  # fmt: skip
            if self._observer is not None:
                self._observer.connection_closed(end)

    def _join(self, connection: LiveConnection) -> None:
        self._by_instance.setdefault(connection.backend.instance_id, set()).add(connection)

    def adrift(self, connection: LiveConnection) -> None:
        """It has no instance any more; another one may go on with it."""
        instance_id = connection.backend.instance_id
        peers = self._by_instance.get(instance_id, set())
        peers.discard(connection)
        if not peers:
            self._by_instance.pop(instance_id, None)
        self._ended.set()
        self._ended = trio.Event()

    def rejoined(self, connection: LiveConnection) -> None:
        """Its `backend` goes on with it."""
        connection.gone_at = math.inf
        self._join(connection)
        logger.info(
            "connection to %s resumed", connection.backend.service_name,
            extra={
                "connection_id": connection.connection_id, "instance_id": connection.backend.instance_id
            },
        )  # fmt: skip
        if self._observer is not None:
            self._observer.connection_resumed(connection.describe(trio.current_time()))

    def follow(self, router: Router, node_id: str, changed: Set[str] | None = None) -> None:
        """Ends those whose instance, on another node than this, has gone by the routing table. `changed`: the
        instances that are to be looked at; None: all.

        One on this node ends them itself when it goes. Of a node that was lost no word may come for minutes.
        """
        looked_at = self._by_instance.keys() if changed is None else self._by_instance.keys() & changed
        for instance_id in looked_at:
            known = router.by_id.get(instance_id)
            lives = known is not None and known.state is not BackendState.COMING
            for connection in self._by_instance[instance_id]:
                its = connection.backend.node_id
                if its == node_id or connection.gone_at < math.inf:
                    continue
                if not lives or (known is not None and known.node_id != its):
                    connection.gone_at = trio.current_time() + _GONE_S
                    connection.tunnel.changed.set()

    def refused(self, code: str) -> None:
        """Reports a refused client."""
        if self._observer is not None:
            self._observer.client_refused(code)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[LiveConnection]:
        return iter(tuple(self._by_id.values()))

    def __contains__(self, connection: LiveConnection) -> bool:
        return connection in self._by_instance.get(connection.backend.instance_id, ())

    def get(self, connection_id: str) -> LiveConnection:
        """Raises `ConnectionNotFound`."""
        try:
            return self._by_id[connection_id]
        except KeyError:
            raise ConnectionNotFound(f"there is no connection {connection_id!r}") from None

    def of_service(self, service_id: str) -> int:
        """How many there are."""
        return self._of_service[service_id]

    def of(self, instance_id: str) -> frozenset[LiveConnection]:
        return frozenset(self._by_instance.get(instance_id, ()))

    async def next_end(self) -> None:
        """Returns when a connection, any connection, has ended."""
        await self._ended.wait()
