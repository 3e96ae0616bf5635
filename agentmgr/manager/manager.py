"""`AgentManager`: one per database, and what every interface steers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio
from attrs import evolve

from .. import __version__
from ..companion import Companion
from ..core import stats
from ..core.loopback import is_loopback
from ..core.routing import ClientRequest, RoutingDecision
from ..errors import AgentManagerError, InvalidRequest, ManagerNotRunning, StorageError, WrongState
from ..models import (
    Connection,
    DesiredStatus,
    Event,
    HealthCheck,
    InstanceRecord,
    RoutingRule,
    Service,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
    Token,
    utc_now,
)
from ..ownership import ManagerLock
from ..proxy.certificate import Certificate
from ..settings import RuntimePaths, Settings
from ..storage.sqlite import open_store
from ..storage.store import Snapshot, Store
from .control_plane import ControlPlane
from .factory_path import settled
from .gateway_access import GatewayAccess
from .listeners import open_listeners
from .system_run import SystemRun
from .tokens import Tokens

logger = logging.getLogger(__name__)

#: A command that works on the database without a manager holds the lock for some milliseconds.
_PATIENCE_S = 1.0


class AgentManager:
    """Registers agent services, keeps them running, and routes clients to them.

        async with AgentManager("my_manager.db") as manager:
            service = await manager.register_service("echo", "echo_agent.py", auto_start=True)

    In an application with a nursery of its own: `await nursery.start(manager.run)`. In the style of the
    guide: `await manager.start()` and, at last, `await manager.stop()`.

    With `supervise=False` it works on the database only: it registers and lists, and starts nothing.

    Entering it raises `ManagerAlreadyRunning` when another process manages the database, and a
    `StorageError` when the database cannot be used. A service is referred to by its name or its id.
    """

    def __init__(
        self,
        db_path: str | os.PathLike[str] = "agent_manager.db",
        *,
        settings: Settings | None = None,
        supervise: bool = True,
    ) -> None:
        self.settings = evolve(settings or Settings(), db_path=os.fspath(db_path))
        self.paths = RuntimePaths.of(self.settings.db_path)
        self.in_background = False  #: shown by `get_info`: a command started it, not a person
        self._supervise = supervise
        self._used = False
        self._plane: ControlPlane | None = None
        self._started_at = utc_now()
        self._listeners: list[dict[str, str | int]] = []
        self._leaving: set[str] = set()  # ids of services that are being unregistered
        self._shutdown_requested = trio.Event()
        self._hurried = trio.Event()
        self._leave_running = False
        self._companion = Companion()
        self._system_run: SystemRun | None = None
        self._tokens: Tokens | None = None

    # Its own life

    async def run(self, *, task_status: trio.TaskStatus[AgentManager] = trio.TASK_STATUS_IGNORED) -> None:
        """Manage until cancelled or asked to shut down; then stop every instance, in order.

        It counts as started when the instances that a former manager left are adopted.
        """
        if self._used:
            raise WrongState("this manager has run already; make another one")
        self._used = True
        lock = ManagerLock(self.paths)
        await lock.acquire_within(_PATIENCE_S)
        try:
            async with open_store(self.paths.database) as store:
                lock.hold_database()
                self._tokens = Tokens(store, await store.tokens())
                await self._run_on(store, await store.load(), GatewayAccess(self._tokens), task_status)
        finally:
            lock.release()

    async def _run_on(
        self,
        store: Store,
        snapshot: Snapshot,
        access: GatewayAccess,
        task_status: trio.TaskStatus[AgentManager],
    ) -> None:
        # Shielded in a task of its own: when `run` is cancelled, the supervisor must still be there to stop
        # what it started, and the gateway to be told. It is cancelled below, when that is done.
        machinery = trio.CancelScope(shield=True)

        async def run_machinery(*, task_status: trio.TaskStatus[None]) -> None:
            with machinery:
                async with trio.open_nursery() as inner:
                    inner.start_soon(plane.keep_publishing)
                    if self._supervise:
                        adopt = _by_service(snapshot.services, snapshot.instances)
                        await inner.start(partial(plane.supervisor.run, adopt=adopt))
                    task_status.started()

        async with trio.open_nursery() as nursery:
            plane = ControlPlane(
                store,
                snapshot,
                nursery,
                log_dir=self.paths.logs,
                settings=self.settings,
                access=access,
            )
            try:
                await nursery.start(run_machinery)
                if self._supervise:
                    await _start_what_should_run(plane)
                plane.changed()
                await plane.published()
                self._plane = plane
                self._started_at = utc_now()
                task_status.started(self)
                await self._shutdown_requested.wait()
            finally:
                try:
                    # As long as the services' own drain and stop timeouts allow; `hurry` cuts it short.
                    with trio.CancelScope(shield=True):
                        if self._supervise:
                            await self._end_services(plane)
                finally:
                    self._plane = None
                    machinery.cancel()
                    nursery.cancel_scope.cancel()

    async def _end_services(self, plane: ControlPlane) -> None:
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await self._hurried.wait()
                await plane.supervisor.shutdown(force=True)

            nursery.start_soon(hurry)
            await plane.supervisor.shutdown(leave_running=self._leave_running)
            nursery.cancel_scope.cancel()

    def request_shutdown(self, *, leave_running: bool = False) -> None:
        """Ask `run` to end; with `leave_running` the instances serve on, for the next manager to adopt."""
        self._leave_running = leave_running
        self._shutdown_requested.set()

    def hurry(self) -> None:
        """While it ends: wait for no more sessions."""
        self._hurried.set()

    async def wait_shutdown_requested(self) -> None:
        await self._shutdown_requested.wait()

    async def __aenter__(self) -> Self:
        await self._companion.begin(self.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.request_shutdown(leave_running=self._leave_running)
        await self._companion.end(kind, error, trace)

    async def start(self) -> None:
        """Manage in the background of this trio run, without a nursery around it."""
        if self._system_run is not None:
            raise WrongState("this manager was started already")
        system_run = SystemRun()
        await system_run.start(self.run)
        self._system_run = system_run

    async def stop(self) -> None:
        """End what `start` began; returns when every instance has stopped."""
        system_run, self._system_run = self._system_run, None
        if system_run is not None:
            await system_run.stop()

    def _live(self) -> ControlPlane:
        if self._plane is None:
            raise ManagerNotRunning("this manager is not running; use `async with AgentManager(...)`")
        return self._plane

    def _supervising(self) -> ControlPlane:
        if not self._supervise:
            raise ManagerNotRunning("no manager runs on this database; `agentmgr daemon` starts one")
        return self._live()

    # Services

    async def register_service(
        self,
        name: str,
        agent_factory_path: str | None = None,
        *,
        command: Sequence[str] = (),
        description: str = "",
        tags: Iterable[str] = (),
        host: str = "localhost",
        port: int | None = None,
        config: ServiceConfig | None = None,
        auto_start: bool = False,
        wait: bool = True,
    ) -> Service:
        """Register an agent file, or any command that serves WebSockets.

        With `auto_start` it is started too; a failure to start raises `ServiceFailedToStart` and leaves it
        registered, with the status `error`.

        Raises `InvalidRequest`, `AgentFileNotFound`, `NameTaken`, `PortNotAvailable`.
        """
        plane = self._supervising() if auto_start else self._live()
        config = config or ServiceConfig()
        if agent_factory_path is not None:
            if config.agent_factory_path not in (None, agent_factory_path):
                raise InvalidRequest("agent_factory_path and config.agent_factory_path name different agents")
            config = evolve(config, agent_factory_path=agent_factory_path)
        if command:
            config = evolve(config, command=command)
        spec = ServiceSpec(
            name=name, config=settled(config), description=description, tags=tags, host=host, port=port
        )
        await plane.registry.add_service(spec)
        plane.events.announce(Event("service.registered", service_id=spec.service_id, detail={"name": name}))
        plane.changed()
        if auto_start:
            return await self.start_service(spec.service_id, wait=wait)
        return plane.view(spec)

    async def update_service(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> Service:
        """Change fields by name: the registration's own, or those of its `ServiceConfig`.

        Running instances keep what they were started with until they are restarted.

        Raises `ServiceNotFound`, `InvalidRequest`, `VersionMismatch`, `NameTaken`, `PortNotAvailable`.
        """
        plane = self._live()
        spec = await plane.registry.change_service(ref, changes, expected_version=expected_version)
        plane.events.announce(
            Event("service.changed", service_id=spec.service_id, detail={"fields": ",".join(sorted(changes))})
        )
        plane.changed()
        return plane.view(spec)

    async def unregister_service(self, ref: str, *, force: bool = False) -> Service:
        """Stop it and forget it; `force` skips the draining of its sessions. Returns what it was."""
        plane = self._live()
        spec = plane.registry.service(ref)
        last = plane.view(spec)
        if spec.service_id in self._leaving:
            raise WrongState(f"service {spec.name!r} is being unregistered already")
        self._leaving.add(spec.service_id)
        try:
            # Shielded: a client that goes away stops waiting for the work, it does not leave it half done.
            with trio.CancelScope(shield=True):
                await plane.registry.want(spec.service_id, DesiredStatus.STOPPED)
                if self._supervise:
                    await plane.supervisor.stop(spec.service_id, force=force)
                await plane.registry.remove_service(spec.service_id)
                plane.supervisor.forget(spec.service_id)
        finally:
            self._leaving.discard(spec.service_id)
        plane.forget(spec.service_id)
        plane.events.announce(
            Event("service.unregistered", service_id=spec.service_id, detail={"name": spec.name})
        )
        plane.changed()
        return last

    async def start_service(self, ref: str, *, wait: bool = True) -> Service:
        """Start it; no error when it runs already.

        With `wait` it returns when all instances are ready, and raises `ServiceFailedToStart` when one gave
        up. Without, it returns at once.
        """
        plane = self._supervising()
        spec = await self._want(plane, ref, DesiredStatus.RUNNING)
        await plane.supervisor.start(spec, wait=wait)
        await plane.published()
        return plane.view(spec)

    async def stop_service(self, ref: str, *, force: bool = False, wait: bool = True) -> Service:
        """Drain its sessions, stop it, and keep it stopped; `force` skips the draining."""
        plane = self._live()
        unwritten: StorageError | None = None
        try:
            spec = await self._want(plane, ref, DesiredStatus.STOPPED)
        except StorageError as error:  # a full disk must not keep anybody from stopping what filled it
            spec, unwritten = plane.registry.service(ref), error
        if self._supervise:
            await plane.supervisor.stop(spec.service_id, force=force, wait=wait)
        if unwritten is not None:
            raise StorageError(
                f"service {spec.name!r} was stopped, and the next manager will start it again, because that "
                f"could not be written down: {unwritten.message}"
            )
        return plane.view(spec)

    async def restart_service(
        self, ref: str, *, rolling: bool = True, force: bool = False, wait: bool = True
    ) -> Service:
        """Start anew from the present registration. Rolling: the new instance is ready before the old stops.

        Raises `ServiceFailedToStart` when the new one does not become ready; the old one stays then.
        """
        plane = self._supervising()
        spec = await self._want(plane, ref, DesiredStatus.RUNNING)
        await plane.supervisor.restart(spec, rolling=rolling, force=force, wait=wait)
        await plane.published()
        return plane.view(spec)

    async def scale_service(self, ref: str, instances: int, *, wait: bool = True) -> Service:
        """Run it with so many instances from now on."""
        plane = self._live()
        spec = await plane.registry.change_service(ref, {"instances": instances})
        if self._supervise and spec.desired_status is DesiredStatus.RUNNING:
            await plane.supervisor.start(spec, wait=wait)
        return plane.view(spec)

    async def _want(self, plane: ControlPlane, ref: str, desired: DesiredStatus) -> ServiceSpec:
        # Between the end of this and the supervisor's taking of the command there is no checkpoint, so
        # commands reach the supervisor in the order in which the wishes were written down.
        spec = plane.registry.service(ref)
        if spec.service_id in self._leaving:
            raise WrongState(f"service {spec.name!r} is being unregistered")
        spec = await plane.registry.want(spec.service_id, desired)
        if spec.service_id in self._leaving:
            raise WrongState(f"service {spec.name!r} is being unregistered")
        return spec

    def get_service(self, ref: str) -> Service:
        """Raises `ServiceNotFound`."""
        plane = self._live()
        return plane.view(plane.registry.service(ref))

    def list_services(
        self, *, status: ServiceStatus | str | None = None, tags: Iterable[str] = (), name: str | None = None
    ) -> list[Service]:
        """All, by name; or those with this status, any of these tags, this text in their name."""
        wanted = frozenset(tags)
        return [
            service
            for service in self._live().views()
            if (status is None or service.status == status)
            and (not wanted or wanted & service.tags)
            and (name is None or name in service.name)
        ]

    async def check_service_health(self, ref: str) -> HealthCheck:
        """Probe every instance now, and return the worst result.

        Raises `WrongState` when none is running.
        """
        plane = self._supervising()
        spec = plane.registry.service(ref)
        checks = await plane.supervisor.check(spec.service_id)
        if not checks:
            raise WrongState(f"service {spec.name!r} is not running; `agentmgr start {spec.name}` starts it")
        return min(checks, key=lambda check: check.ok)

    async def get_health_history(self, ref: str, *, limit: int = 100) -> tuple[HealthCheck, ...]:
        """Past probes, the newest first."""
        plane = self._live()
        return await plane.store.health_history(plane.registry.service(ref).service_id, limit=limit)

    def log_path(self, ref: str, slot: int = 0) -> Path:
        """The file that holds what this instance wrote; it may not exist yet."""
        plane = self._live()
        return plane.supervisor.log_path(plane.registry.service(ref).name, slot)

    # Figures

    def get_service_stats(self, ref: str) -> dict[str, Any]:
        plane = self._live()
        service = self.get_service(ref)
        return stats.service_stats(
            service,
            plane.totals(service.service_id),
            peak_sessions=plane.peak_sessions(service.service_id),
            now=utc_now(),
        )

    def get_system_stats(self) -> dict[str, Any]:
        plane = self._live()
        return stats.system_stats(plane.views(), plane.gateway.connections())

    def get_connection_stats(self) -> dict[str, Any]:
        plane = self._live()
        return stats.connection_stats(plane.views(), plane.gateway.connections())

    def get_health_summary(self) -> dict[str, int]:
        return stats.health_summary(self._live().views())

    def get_info(self) -> dict[str, Any]:
        """About this manager: version, process, database, listeners."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "database": str(self.paths.database),
            "started_at": self._started_at,
            "uptime_s": (utc_now() - self._started_at).total_seconds(),
            "supervising": self._supervise,
            "background": self.in_background,
            "degraded": self._live().store.degraded,
            "listeners": list(self._listeners),
        }

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
        return self._live().gateway.connections()

    def disconnect(self, connection_id: str, *, code: int = 1008, reason: str = "") -> None:
        """Close one session, on both sides. Raises `ConnectionNotFound`."""
        self._live().gateway.disconnect(connection_id, code=code, reason=reason)

    async def serve_proxy(
        self,
        host: str = "localhost",
        port: int = 9090,
        *,
        certificate: Certificate | None = None,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Open the gateway at this address until cancelled; `task_status` gets the port.

        With a certificate it speaks `wss://` only. Raises `PortNotAvailable`.
        """
        plane = self._supervising()
        listeners = await open_listeners(host, port)
        port = listeners[0].socket.getsockname()[1]
        if not is_loopback(host) and not plane.access.required:
            logger.warning(
                "the gateway at %s:%d is open to everybody who can reach it; "
                "`agentmgr tokens create NAME --scope connect` makes it ask for a token",
                host,
                port,
            )
        with ExitStack() as stack:
            for listener in listeners:
                stack.callback(listener.socket.close)
            stack.enter_context(self.listening("proxy", host, port))
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(plane.gateway.serve, listeners, certificate=certificate))
                task_status.started(port)

    @contextmanager
    def listening(self, kind: str, host: str, port: int) -> Iterator[None]:
        """Name a listener in `get_info` for as long as it is open."""
        entry: dict[str, str | int] = {"kind": kind, "host": host, "port": port}
        self._listeners.append(entry)
        try:
            yield
        finally:
            self._listeners.remove(entry)

    async def backup(self, destination: str | os.PathLike[str]) -> Path:
        """Copies the database as it is now to a new file, while all goes on. Raises `Conflict`."""
        path = Path.cwd() / destination
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
        plane.events.announce(Event("token.created", detail={"name": token.name}))
        return token, key

    async def delete_token(self, ref: str) -> Token:
        """Raises `TokenNotFound`."""
        plane = self._live()
        assert self._tokens is not None
        token = await self._tokens.delete(ref)
        plane.events.announce(Event("token.revoked", detail={"name": token.name}))
        return token

    def find_token(self, key: str) -> Token | None:
        """Whose key this is; None when it is nobody's."""
        return self._tokens.find(key) if self._tokens else None

    # Events

    def subscribe(self) -> AbstractContextManager[trio.MemoryReceiveChannel[Event]]:
        """Live events. The channel ends if its reader lags too far behind; `get_events` has the rest."""
        return self._live().events.subscribe()

    async def get_events(self, *, after: int = 0, limit: int = 1000) -> tuple[Event, ...]:
        """Past events with a higher id than `after`, the oldest first."""
        return await self._live().store.events(after=after, limit=limit)


async def _start_what_should_run(plane: ControlPlane) -> None:
    for spec in plane.registry.services():
        if spec.desired_status is DesiredStatus.RUNNING:
            try:
                await plane.supervisor.start(spec, wait=False)
            except AgentManagerError as error:  # one service's trouble must not keep the others down
                logger.error("service %s was not started: %s", spec.name, error)


def _by_service(
    services: Iterable[ServiceSpec], records: Iterable[InstanceRecord]
) -> list[tuple[ServiceSpec, list[InstanceRecord]]]:
    found: dict[str, list[InstanceRecord]] = {}
    for record in records:
        found.setdefault(record.service_id, []).append(record)
    return [(spec, found.get(spec.service_id, [])) for spec in services]
