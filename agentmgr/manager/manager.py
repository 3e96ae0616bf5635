"""`AgentManager`: one per database, and what every interface steers."""

from __future__ import annotations

import logging
import os
import resource
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

from .. import __version__
from ..core import stats
from ..core.histogram import Histogram
from ..core.loopback import is_loopback
from ..core.routing import ClientRequest, RoutingDecision
from ..errors import AgentManagerError
from ..models import (
    Connection,
    Event,
    RoutingRule,
    Service,
    Ticket,
    Token,
    TokenPolicy,
    Usage,
    utc_now,
)
from ..process.listening import open_listeners
from ..process.paths import absolute
from ..proxy.certificate import Certificate
from ..worker.spec import WorkerSpec
from .figures import Figures
from .gateway_access import TICKET_LIFE_S
from .services import ServiceCommands
from .worker_set import WorkerSet

logger = logging.getLogger(__name__)


class AgentManager(ServiceCommands):
    """Registers agent services, keeps them running, and routes clients to them.

        async with AgentManager("my_manager.db") as manager:
            service = await manager.register_service("echo", "echo_agent.py", auto_start=True)

    In an application with a nursery of its own: `await nursery.start(manager.run)`. In the style of the
    guide: `await manager.start()` and, at last, `await manager.stop()`.

    With `supervise=False` it works on the database only: it registers and lists, and starts nothing.

    Entering it raises `ManagerAlreadyRunning` when another process manages the database, and a
    `StorageError` when the database cannot be used. A service is referred to by its name or its id.
    """

    # Figures

    def get_service_stats(self, ref: str) -> dict[str, Any]:
        """What it did ever, kept across restarts, and its live sessions. Raises `ServiceNotFound`."""
        service = self.get_service(ref)
        live = [c for c in self.list_connections() if c.service_id == service.service_id]
        return self._stats_of(service, live)

    def get_stats_by_service(self) -> dict[str, dict[str, Any]]:
        """What `get_service_stats` says of each, by name."""
        live = defaultdict[str, list[Connection]](list)
        for connection in self.list_connections():
            live[connection.service_id].append(connection)
        return {s.name: self._stats_of(s, live[s.service_id]) for s in self.list_services()}

    def _stats_of(self, service: Service, live: Collection[Connection]) -> dict[str, Any]:
        plane = self._live()
        return stats.service_stats(
            service,
            plane.totals(service.service_id),
            live=live,
            usage=plane.usage(service.service_id),
            now=utc_now(),
        )

    def get_service_usage(self, ref: str) -> dict[str, tuple[Usage, ...]]:
        """What its instances used of the machine: by instance id, a sample every 10 s, of the last hour."""
        return self._live().usage(self.get_service(ref).service_id)

    def get_system_stats(self) -> dict[str, Any]:
        """`{services, connections, health, instances, troubles}`, each with its counts."""
        plane = self._live()
        return stats.system_stats(plane.views(), plane.connections(), troubles=self._troubles())

    def get_connection_stats(self) -> dict[str, Any]:
        """Live sessions: `{total_connections, by_status, by_service}`."""
        plane = self._live()
        return stats.connection_stats(plane.views(), plane.connections())

    def get_health_summary(self) -> dict[str, int]:
        """How many services are in each health; one that does not run is `unknown`."""
        return stats.health_summary(self._live().views())

    def get_figures(self) -> Figures:
        """What was timed and counted since this manager started."""
        return self._live().figures

    def get_database_timings(self) -> Mapping[str, Histogram]:
        """How long this manager has waited for its database, by `read` and `write`."""
        return self._live().store.timings

    def get_dropped_facts(self) -> int:
        """How many events, checks and ends of sessions this manager could not write, and gave up."""
        return self._live().store.dropped

    def get_info(self) -> dict[str, Any]:
        """About this manager: version, process, database, listeners, limits."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "database": str(self.paths.database),
            "started_at": self._started_at,
            "uptime_s": (utc_now() - self._started_at).total_seconds(),
            "supervising": self._supervise,
            "background": self._in_background,
            "degraded": "; ".join(self._troubles()) or None,
            "listeners": [*self._listeners, *self._live().worker_manager.listeners()],
            "tokens_required": self.get_token_policy(),
            "limits": {
                "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                "connections": self._live().gateway.max_connections,
                "api_requests_per_second": self.settings.api_rate_limit or None,
            },
        }

    def _troubles(self) -> tuple[str, ...]:
        of_the_file = self._lock.trouble()
        return (*(() if of_the_file is None else (of_the_file,)), *self._live().troubles())

    # Routing

    def list_routing_rules(self) -> tuple[RoutingRule, ...]:
        """In the order in which they are tried."""
        return self._live().registry.rules()

    def get_routing_rule(self, ref: str) -> RoutingRule:
        """Raises `RuleNotFound`."""
        return self._live().registry.rule(ref)

    async def create_routing_rule(self, rule: RoutingRule) -> RoutingRule:
        """Raises `NameTaken`. It holds for the next client; sessions that are open stay where they are."""
        plane = self._live()
        await plane.registry.add_rule(rule)
        return await self._rule_changed("rule.created", rule)

    def add_routing_rule(self, rule: RoutingRule) -> None:
        """`create_routing_rule` for code that cannot await: it is written, and holds, a moment later.

        Raises `NameTaken`; should the write fail, that is logged.
        """
        plane = self._live()
        plane.registry.check_rule(rule)
        plane.nursery.start_soon(self._add_rule_later, rule)

    async def _add_rule_later(self, rule: RoutingRule) -> None:
        try:
            await self.create_routing_rule(rule)
        except AgentManagerError as error:
            logger.error("routing rule %s was not added: %s", rule.name, error)

    async def update_routing_rule(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> RoutingRule:
        """Raises `RuleNotFound`, `InvalidRequest`, `VersionMismatch`, `NameTaken`."""
        plane = self._live()
        rule = await plane.registry.change_rule(ref, changes, expected_version=expected_version)
        return await self._rule_changed("rule.changed", rule)

    async def delete_routing_rule(self, ref: str) -> RoutingRule:
        """Raises `RuleNotFound`."""
        return await self._rule_changed("rule.deleted", await self._live().registry.remove_rule(ref))

    async def _rule_changed(self, kind: str, rule: RoutingRule) -> RoutingRule:
        plane = self._live()
        plane.changed()
        await plane.published()
        plane.events.announce(Event(kind, detail={"rule_id": rule.rule_id, "name": rule.name}))
        return rule

    def test_routing(self, request: ClientRequest) -> RoutingDecision:
        """Which rule such a client would meet, the candidates, and the choice."""
        return self._live().gateway.route(request)

    # Connections

    def list_connections(self) -> tuple[Connection, ...]:
        """The live sessions through the gateway."""
        return self._live().connections()

    def disconnect(self, connection_id: str, *, code: int = 1008, reason: str = "") -> None:
        """Close one session, on both sides. Raises `ConnectionNotFound`."""
        self._live().disconnect(connection_id, code=code, reason=reason)

    async def serve_proxy(
        self,
        host: str = "localhost",
        port: int = 9090,
        *,
        certificate: Certificate | None = None,
        proxy_protocol: bool | None = None,
        workers: int | None = None,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Open the gateway at this address until cancelled; `task_status` gets the port.

        With a certificate it speaks `wss://` only. With `proxy_protocol` its connections come from trusted
        proxies and begin with that. With `workers`, so many processes serve it instead of this one; they
        outlive a manager that is killed. None: as the settings say, and 0 where they do not. Raises
        `PortNotAvailable`, `InvalidRequest`, and `ManagerError` where the workers do not start.
        """
        plane = self._supervising()
        settings = evolve(self.settings, db_path=str(self.paths.database))
        if proxy_protocol is not None:
            settings = evolve(settings, proxy_protocol=proxy_protocol)
        settings.check_gateway()
        if not is_loopback(host) and not plane.access.required:
            logger.warning(
                "the gateway at %s:%d is open to all who can reach it; "
                "`agentmgr tokens create NAME --scope connect` makes it ask for a token",
                host,
                port,
            )
        count = settings.proxy_workers if workers is None else workers
        # Who asks for none gets those that a former manager left there: their sessions are worth more.
        if count := count or sum(left.hello.port == port for left in plane.worker_manager.left_at(host)):
            certfile, keyfile = certificate.files if certificate else (None, None)
            spec = WorkerSpec("", settings, host, port, certfile, keyfile)
            await self._serve_by_workers(
                WorkerSet(spec, count, worker_manager=plane.worker_manager), task_status
            )
            return
        listeners = await open_listeners(host, port)
        port = listeners[0].socket.getsockname()[1]
        with ExitStack() as stack:
            for listener in listeners:
                stack.callback(listener.socket.close)
            stack.enter_context(self.listening("proxy", host, port, tls=certificate is not None))
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    partial(
                        plane.gateway.serve,
                        listeners,
                        certificate=certificate,
                        proxy_protocol=settings.proxy_protocol,
                    )
                )
                task_status.started(port)

    async def _serve_by_workers(self, workers: WorkerSet, task_status: trio.TaskStatus[int]) -> None:
        self._worker_sets.add(workers)
        try:
            await workers.run(task_status=task_status)
        finally:
            self._worker_sets.remove(workers)

    @contextmanager
    def listening(self, kind: str, host: str, port: int, *, tls: bool = False) -> Iterator[None]:
        """Name a listener in `get_info` for as long as it is open."""
        entry: dict[str, str | int] = {"kind": kind, "host": host, "port": port, "tls": tls}
        self._listeners.append(entry)
        try:
            yield
        finally:
            self._listeners.remove(entry)

    async def backup(self, destination: str | os.PathLike[str]) -> Path:
        """Copies the database as it is now to a new file, while all goes on. Raises `Conflict`."""
        path = absolute(destination)
        await self._live().store.backup(path)
        return path

    # Tokens

    def list_tokens(self) -> tuple[Token, ...]:
        """Keys to the API and the gateway, without what they open with."""
        return self._tokens.all() if self._tokens else ()

    async def create_token(
        self, name: str, scopes: Iterable[str], *, expires_in_days: float | None = None
    ) -> tuple[Token, str]:
        """A token and its key, which is kept nowhere. Raises `NameTaken`, `InvalidRequest`."""
        plane = self._live()
        assert self._tokens is not None
        token, key = await self._tokens.create(name, scopes, expires_in_days=expires_in_days)
        plane.changed()  # the gateway's workers get the tokens with the table
        await plane.published()
        plane.events.announce(Event("token.created", detail={"name": token.name}))
        return token, key

    async def delete_token(self, ref: str, *, leave_open: bool = False) -> Token:
        """Revokes a token: its sessions through the gateway are closed with 1008, and its followed events and
        logs and its waiting requests end, unless `leave_open`. Raises `TokenNotFound`.
        """
        plane = self._live()
        assert self._tokens is not None
        token = await self._tokens.delete(ref, leave_open=leave_open)
        plane.changed()
        await plane.published()
        plane.events.announce(Event("token.revoked", detail={"name": token.name}))
        for sentence in self._tokens.policy.closed(self._tokens.all(), utc_now()):
            logger.warning(sentence)
        return token

    def get_token_policy(self) -> TokenPolicy:
        """Whether the API over TCP and the gateway ask for tokens."""
        return self._tokens.policy if self._tokens else TokenPolicy()

    async def require_tokens(self, *, api: bool | None = None, gateway: bool | None = None) -> TokenPolicy:
        """Have the API over TCP and the gateway ask for tokens, or no longer; None: as before.

        The first token for one of them switches it on; only this switches it off.
        """
        plane = self._live()
        assert self._tokens is not None
        policy = await self._tokens.require(api=api, gateway=gateway)
        plane.changed()  # workers of the gateway get the policy with the table
        await plane.published()
        plane.events.announce(
            Event("token.policy_changed", detail={"api": policy.api, "gateway": policy.gateway})
        )
        return policy

    def create_ticket(self, service: str | None = None, *, expires_in_s: float = TICKET_LIFE_S) -> Ticket:
        """A key to the gateway for one connection, as `?ticket=`, to all services or to one.

        Raises `ServiceNotFound`, `InvalidRequest`, `TooManyTickets`.
        """
        return self.issue_ticket(None, service, expires_in_s=expires_in_s)

    def issue_ticket(self, token: Token | None, service: str | None, *, expires_in_s: float) -> Ticket:
        """The same in the name of a token: it opens what that one does, when it is used."""
        name = None if service is None else self.get_service(service).name
        return self._live().access.issue(token, name, expires_in_s)

    def while_valid(self, token: Token | None) -> AbstractContextManager[trio.CancelScope]:
        """A scope around what this token opened: it is cancelled when the token is revoked, or expires."""
        assert self._tokens is not None
        return self._tokens.while_valid(token)

    def find_token(self, key: str) -> Token | None:
        """The token of this key; None for an unknown key."""
        return self._tokens.find(key) if self._tokens else None

    # Events

    def subscribe(self) -> AbstractContextManager[trio.MemoryReceiveChannel[Event]]:
        """Live events. The channel ends if its reader lags too far behind; `get_events` has the rest."""
        return self._live().events.subscribe()

    async def get_events(self, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Past events with a higher id than `after`, the oldest first."""
        return await self._live().store.events(after=after, limit=limit)
