"""`AgentManager`: one per database, and what every interface steers."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import trio
from attrs import evolve

from .. import models
from ..core import stats, view
from ..core.recent import minute_of
from ..core.request import ClientRequest
from ..core.routing import RoutingDecision
from ..core.secrets import restored, restored_hook
from ..core.stats import Histogram
from ..errors import AgentManagerError, InvalidRequest, ManagerNotRunning, WrongState
from ..models import RoutingRule, Service, ServiceConfig, ServiceStatus, Ticket, Token, TokenPolicy, utc_now
from ..process.companion import Companion, SystemRun
from ..process.paths import RuntimePaths, absolute
from ..proxy.certificate import Certificate
from ..settings import Settings
from ..supervisor.log_source import LogSource
from ..version import __version__
from ..worker.spec import WorkerSpec
from . import doctor, services
from .connections import OpenConnection
from .console import Console
from .control_plane import ControlPlane
from .factory_path import settled
from .gateway_access import TICKET_LIFE_S
from .life import ManagerLife
from .listeners import ManagerListeners
from .recorder import Figures
from .sampling import Viewer
from .sessions import Sessions
from .summaries import Row

if TYPE_CHECKING:
    from .cluster import JoinedCluster

logger = logging.getLogger(__name__)


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
        in_background: bool = False,
    ) -> None:
        self.settings = evolve(settings or Settings(), db_path=os.fspath(db_path))
        self.paths = RuntimePaths.of(self.settings.db_path)
        self._in_background = in_background  # shown by `get_info`: a command started it, not a person
        self._listeners = ManagerListeners()
        self._life = ManagerLife(self.settings, self.paths, self._listeners, supervises=supervise)
        self._companion = Companion()
        self._system_run: SystemRun | None = None
        self._diagnosing = trio.CapacityLimiter(1)

    # Its life

    async def run(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Manage until cancelled or asked to shut down; then stop every instance, in order.

        It counts as started when the instances that a former manager left are adopted.
        """
        await self._life.run(lambda: task_status.started(self))

    async def __aenter__(self) -> Self:
        await self._companion.begin(self.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.end_requested.set()
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

    def request_shutdown(self, *, leave_running: bool = False) -> None:
        """Ask `run` to end; with `leave_running` the instances serve on, for the next manager to adopt."""
        self._life.end(leave_running=leave_running)

    def hurry(self, *, kill: bool = False) -> None:
        """While it ends: wait for no connection any more; with `kill`, for no process either."""
        self._life.hurry(kill=kill)

    async def wait_shutdown_requested(self) -> None:
        """Returns when `request_shutdown` was called."""
        await self._life.end_requested.wait()

    def _live(self) -> ControlPlane:
        if self._life.plane is None:
            raise ManagerNotRunning(
                "this manager is ending, or was never started (`async with AgentManager(...)`)"
            )
        return self._life.plane

    def _supervising(self) -> ControlPlane:
        if not self._life.supervises:
            raise ManagerNotRunning("no manager runs on this database; `agentmgr daemon` starts one")
        if self._life.end_requested.is_set():  # said before anything is written that the next manager reads
            raise ManagerNotRunning("this manager is shutting down; try again when it has ended")
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
        check: bool = False,
    ) -> Service:
        """Register an agent file, or any command that serves WebSockets.

        With `auto_start` it is started too; a failure to start raises `ServiceFailedToStart` and leaves it
        registered, with the status `error`. With `check` nothing is registered or started: it returns what
        would be registered, or raises why it cannot be.

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
        restored(config.env, {})  # a hidden value is none
        restored_hook(config.on_failure, None)
        spec = models.ServiceSpec(
            name=name, config=settled(config), description=description, tags=tags, host=host, port=port
        )
        if check:
            plane.registry.check_service(spec)
            return view.service_view(spec, (), 0)
        service = await services.register(plane, spec)
        return await self.start_service(spec.service_id, wait=wait) if auto_start else service

    async def update_service(
        self, ref: str, changes: Mapping[str, Any], *, expected_version: int | None = None
    ) -> Service:
        """Change fields by name: the registration's own, or those of its `ServiceConfig`.

        Running instances keep what they were started with until they are restarted; how many there are
        follows at once.

        Raises `ServiceNotFound`, `InvalidRequest`, `VersionMismatch`, `NameTaken`, `PortNotAvailable`.
        """
        return await services.change(self._live(), ref, changes, expected_version=expected_version)

    async def unregister_service(self, ref: str, *, force: bool = False) -> Service:
        """Stop it and forget it, with its sessions. Returns what it was.

        Raises `Conflict` where it has sessions that are kept, unless `force` says that they are to be erased;
        `force` also skips the draining of its connections.
        """
        return await services.unregister(self._live(), ref, force=force)

    async def start_service(self, ref: str, *, wait: bool = True) -> Service:
        """Start it; no error when it runs already. What starts on demand is `asleep` until a client comes.

        With `wait` it returns when all instances are ready, and raises `ServiceFailedToStart` when one gave
        up. Without, it returns at once.
        """
        return await services.start(self._supervising(), ref, wait=wait)

    async def stop_service(self, ref: str, *, force: bool = False, wait: bool = True) -> Service:
        """Drain its sessions, stop it, and keep it stopped; `force` skips the draining."""
        return await services.stop(self._live(), ref, force=force, wait=wait)

    async def restart_service(
        self, ref: str, *, rolling: bool = True, force: bool = False, wait: bool = True
    ) -> Service:
        """Start anew from the present registration. Rolling: the new instance is ready before the old stops.

        Raises `ServiceFailedToStart` when the new one does not become ready; the old one stays then.
        """
        return await services.restart(self._supervising(), ref, rolling=rolling, force=force, wait=wait)

    def watch_service(self, ref: str) -> None:
        """Restart it, rolling, whenever a Python file beside its agent's is saved, while this manager runs.

        Whatever its `watch` says stays as it is, and takes precedence. Raises `ServiceNotFound`, and
        `InvalidRequest` where the package watchfiles is missing.
        """
        plane = self._supervising()
        plane.reloads.ask(plane.registry.service(ref).service_id)

    async def scale_service(self, ref: str, instances: int | str, *, wait: bool = True) -> Service:
        """Run it with so many instances from now on; with a range, as in "2..8", its load decides."""
        return await services.scale(self._live(), ref, instances, wait=wait)

    async def run_service_now(self, ref: str) -> Service:
        """Begin a run of a service with a schedule, besides those by its schedule; do not wait for its end.

        Raises `WrongState` where it has no schedule, or runs already and its `overlap` is `skip`.
        """
        return await services.run_now(self._supervising(), ref)

    def get_service(self, ref: str) -> Service:
        """Raises `ServiceNotFound`."""
        plane = self._live()
        return plane.view(plane.registry.service(ref))

    def get_environments(self) -> dict[str, dict[str, str]]:
        """The variables of each service, by its name, with their values, which may be secrets."""
        return {spec.name: dict(spec.config.env) for spec in self._live().registry.services()}

    def get_hooks(self) -> dict[str, str]:
        """The `on_failure` of each service that has one, in full: a secret, often enough."""
        services = self._live().registry.services()
        return {spec.name: spec.config.on_failure for spec in services if spec.config.on_failure is not None}

    def get_digests(self) -> dict[str, tuple[str, ...]]:
        """Of the agent file and env file that each instance was launched with, by service: a secret."""
        plane = self._live()
        return {spec.name: plane.supervisor.digests(spec.service_id) for spec in plane.registry.services()}

    def list_services(
        self, *, status: ServiceStatus | str | None = None, tags: Iterable[str] = (), name: str | None = None
    ) -> list[Service]:
        """All, by name; or those with this status, any of these tags, this text in their name."""
        return view.matching(self._live().views(), status=status, tags=tags, name=name)

    async def service_rows(self) -> Mapping[str, Row]:
        """A short row for each service, as plain data, by its id; cheap for thousands."""
        return await self._live().summaries.refresh()

    async def check_service_health(self, ref: str) -> models.HealthCheck:
        """Probe every instance now, and return the worst result; one that is asleep is started for that.

        Raises `WrongState` when none is running, and `ServiceFailedToStart`.
        """
        plane = self._supervising()
        spec = plane.registry.service(ref)
        await plane.on_demand.awake(spec, "an operator asks for its health")
        checks = await plane.supervisor.check(spec.service_id)
        if not checks:
            raise WrongState(f"service {spec.name!r} is not running; `agentmgr start {spec.name}` starts it")
        return min(checks, key=lambda check: check.ok)

    async def get_health_history(self, ref: str, *, limit: int = 100) -> tuple[models.HealthCheck, ...]:
        """Past probes that found something else than the one before of their instance, the newest first."""
        plane = self._live()
        return await plane.store.health_history(plane.registry.service(ref).service_id, limit=limit)

    async def get_ends(self, ref: str, *, limit: int = 50) -> tuple[models.InstanceEnd, ...]:
        """How its last instances ended, the newest first, each with the last lines of its output."""
        plane = self._live()
        return await plane.store.ends(plane.registry.service(ref).service_id, limit=limit)

    async def get_minutes(
        self, service_ids: Iterable[str], first: int, last: int
    ) -> Mapping[str, Mapping[int, models.MinuteFigures]]:
        """What services did in each minute (since 1970), of the last day; absent: nothing was measured."""
        return await self._live().store.minutes(frozenset(service_ids), first, last)

    def log_path(self, ref: str, slot: int = 0) -> Path:
        """The file that holds what this instance wrote; it may not exist yet."""
        plane = self._live()
        return plane.supervisor.log_path(plane.registry.service(ref).name, slot)

    def open_log(self, ref: str, slot: int = 0) -> LogSource:
        """What the instances at that position wrote, wherever they run."""
        plane = self._live()
        return plane.supervisor.open_log(plane.registry.service(ref), slot)

    @property
    def sessions(self) -> Sessions:
        """The conversations of hosted agents: to see, to speak in, to end."""
        return self._live().sessions

    @property
    def console(self) -> Console:
        """Who may log in to the page that the API serves."""
        return self._live().console

    # Figures

    def get_service_stats(self, ref: str) -> dict[str, Any]:
        """What it did ever, kept across restarts, and its open connections. Raises `ServiceNotFound`."""
        spec = self._live().registry.service(ref)
        return self._live().stats([spec])[spec.name]

    def get_stats_by_service(self) -> dict[str, dict[str, Any]]:
        """What `get_service_stats` says of each, by name."""
        return self._live().stats(self._live().registry.services())

    def get_service_usage(self, ref: str) -> dict[str, tuple[models.Usage, ...]]:
        """What its instances used of the machine: by instance id, a sample every 10 s, of the last hour."""
        return self._live().usage(self._live().registry.service(ref).service_id)

    def get_system_stats(self) -> dict[str, Any]:
        """`{services, connections, health, instances, troubles}`, each with its counts."""
        plane = self._live()
        return stats.system_stats(plane.views(), plane.connections.counts(), troubles=plane.troubles())

    def get_connection_stats(self) -> dict[str, Any]:
        """Open connections: `{total_connections, by_status, by_service}`."""
        plane = self._live()
        return stats.connection_stats(plane.views(), plane.connections.counts())

    def get_health_summary(self) -> dict[str, int]:
        """How many services are in each health; one that does not run is `unknown`."""
        return stats.health_summary(self._live().views())

    def get_figures(self) -> Figures:
        """What was timed and counted since this manager started."""
        return self._live().recorder.figures

    def get_database_timings(self) -> Mapping[str, Histogram]:
        """How long this manager has waited for its database, by `read` and `write`."""
        return self._live().store.timings

    def get_dropped_facts(self) -> int:
        """How many events, checks and ends of connections this manager could not write, and gave up."""
        return self._live().store.dropped

    def get_info(self) -> dict[str, Any]:
        """About this manager: version, process, database, listeners, limits."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "database": str(self.paths.database),
            "started_at": self._life.started_at,
            "uptime_s": (utc_now() - self._life.started_at).total_seconds(),
            "supervising": self._life.supervises,
            "background": self._in_background,
            "degraded": "; ".join(self._live().troubles()) or None,
            "listeners": [*self._listeners.open, *self._live().worker_manager.listeners()],
            "fork_servers": self._live().supervisor.fork_servers(),
            "tokens_required": self.get_token_policy(),
            "limits": {
                "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                "connections": self._live().gateway.max_connections,
                "api_requests_per_second": self.settings.api_rate_limit or None,
            },
        }

    async def diagnose(self) -> list[doctor.Finding]:
        """What is wrong with the database, its files, the ports and the services' files, and what to do."""
        plane = self._live()
        snapshot = await plane.store.load()
        configs = {spec.service_id: spec.config for spec in plane.registry.services()}
        # In full: where its PATH is hidden, no program is found.
        services = [evolve(view, config=configs[view.service_id]) for view in plane.views()]
        known = doctor.Known(services, snapshot.instances, self.list_tokens(), self.get_token_policy())
        work = partial(doctor.examine, self.paths, self.settings, known, self.get_info())
        findings = await trio.to_thread.run_sync(work, limiter=self._diagnosing)
        findings += await plane.network.examine()
        return findings if plane.cluster is None else findings + await plane.cluster.examine(services)

    # Routing

    def list_routing_rules(self) -> tuple[RoutingRule, ...]:
        """In the order in which they are tried."""
        return self._live().registry.rules()

    def get_routing_rule(self, ref: str) -> RoutingRule:
        """Raises `RuleNotFound`."""
        return self._live().registry.rule(ref)

    async def create_routing_rule(self, rule: RoutingRule) -> RoutingRule:
        """Raises `NameTaken`. It holds for the next client; open connections stay where they are."""
        plane = self._live()
        return await _rule_changed(plane, "rule.created", await plane.registry.add_rule(rule))

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
        return await _rule_changed(plane, "rule.changed", rule)

    async def delete_routing_rule(self, ref: str) -> RoutingRule:
        """Raises `RuleNotFound`."""
        plane = self._live()
        return await _rule_changed(plane, "rule.deleted", await plane.registry.remove_rule(ref))

    def test_routing(self, request: ClientRequest) -> RoutingDecision:
        """Which rule such a client would meet, the candidates, and the choice."""
        return self._live().gateway.route(request)

    def get_routing_hits(self) -> dict[str, Any]:
        """How many connections were opened in the last hour: `{minutes, rules, default}`.

        `rules`: by the name of the rule that chose; `default`: those that no rule chose. What is refused is
        not counted.
        """
        hits = self._live().recorder.rule_hits.totals(minute_of(utc_now()))
        rules = {rule.name: hits[rule.name] for rule in self._live().registry.rules()}
        return {"minutes": 60, "rules": rules, "default": hits[None]}

    # Connections

    def list_connections(self) -> tuple[models.Connection, ...]:
        """The open connections through the gateway."""
        return self._live().connections.described()

    def open_connections(self) -> Iterable[OpenConnection]:
        """The same, for who wants a part of many: each is described when that is asked for."""
        return self._live().connections

    def disconnect(self, connection_id: str, *, code: int = 1008, reason: str = "") -> None:
        """Close one connection, on both sides. Raises `ConnectionNotFound`."""
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
        spec = WorkerSpec("", settings, host, port, *(certificate.files if certificate else ()))
        count = settings.proxy_workers or 0 if workers is None else workers
        await self._listeners.serve_gateway(plane, spec, certificate, count, task_status)

    @contextmanager
    def listening(self, kind: str, host: str, port: int, *, tls: bool = False) -> Iterator[None]:
        """Name a listener in `get_info` for as long as it is open. The gateway lets the page of an API in."""
        with ExitStack() as stack:
            stack.enter_context(self._listeners.named(kind, host, port, tls=tls))
            if kind == "api":
                stack.enter_context(self.console.served_at(host, port, tls=tls))
            yield

    async def backup(self, destination: str | os.PathLike[str]) -> Path:
        """Copies the database as it is now to a new file, and the journals of sessions to `FILE.d/sessions`,
        while all goes on. Raises `Conflict`.
        """
        path = absolute(destination)
        await self._live().sessions.back_up(self._live().store, path)
        return path

    # Nodes

    def _cluster(self) -> JoinedCluster:
        """Raises `WrongState`."""
        if (cluster := self._live().cluster) is None:
            raise WrongState("this manager has no cluster: `agentmgr daemon --cluster joined` has one")
        return cluster

    @property
    def has_cluster(self) -> bool:
        return self._live().cluster is not None

    def list_nodes(self) -> list[models.Node]:
        """The nodes of its cluster, the manager's own machine first. Raises `WrongState` without one."""
        return self._cluster().nodes_shown()

    def get_node(self, ref: str) -> models.Node:
        """By its name or id. Raises `NodeNotFound`, `WrongState`."""
        return self._cluster().get(ref)

    async def invite_nodes(self, *, uses: int = 1, expires_in_s: float = 300.0) -> models.Invitation:
        """A secret with which so many machines may join, by `agentmgr node --join`. Raises `InvalidRequest`,
        `WrongState`.
        """
        return await self._cluster().invite(uses, expires_in_s)

    async def forget_node(self, ref: str) -> models.Node:
        """It will not come back: its certificate lets it in no longer, what ran there starts elsewhere.

        Raises `NodeNotFound`, `WrongState`, and `Conflict` while it is linked.
        """
        return await self._cluster().forget(ref)

    async def cordon_node(self, ref: str, *, cordoned: bool = True) -> models.Node:
        """Place nothing new there, or do so again; what runs there stays.

        Raises `NodeNotFound`, `WrongState`.
        """
        return await self._cluster().cordon(ref, cordoned)

    async def drain_node(self, ref: str, *, timeout_s: float = 300.0) -> models.DrainedNode:
        """Move what runs there to other nodes, and place nothing new there: the machine may go then. What
        cannot move, or has not in time, runs on, and the answer says why. It may be asked again at any time.

        Raises `NodeNotFound`, `WrongState`.
        """
        from .node_drain import drain  # only where there is a cluster

        return await drain(self._supervising(), self._cluster(), ref, timeout_s)

    # Tokens

    def list_tokens(self) -> tuple[Token, ...]:
        """Keys to the API and the gateway, without what they open with."""
        return self._life.tokens.all() if self._life.tokens else ()

    async def create_token(
        self, name: str, scopes: Iterable[str], *, expires_in_days: float | None = None
    ) -> tuple[Token, str]:
        """A token and its key, which is kept nowhere. Raises `NameTaken`, `InvalidRequest`."""
        plane = self._live()
        token, key = await plane.tokens.create(name, scopes, expires_in_days=expires_in_days)
        await plane.announce_published("token.created", name=token.name)
        return token, key

    async def delete_token(self, ref: str, *, leave_open: bool = False) -> Token:
        """Revokes a token: its connections through the gateway are closed with 1008, and its followed events
        and logs and its waiting requests end, unless `leave_open`. Raises `TokenNotFound`.
        """
        plane = self._live()
        token = await plane.tokens.delete(ref, leave_open=leave_open)
        await plane.announce_published("token.revoked", name=token.name)
        for sentence in plane.tokens.policy.closed(plane.tokens.all(), utc_now()):
            logger.warning(sentence)
        return token

    def get_token_policy(self) -> TokenPolicy:
        """Whether the API over TCP and the gateway ask for tokens."""
        return self._life.tokens.policy if self._life.tokens else TokenPolicy()

    async def require_tokens(self, *, api: bool | None = None, gateway: bool | None = None) -> TokenPolicy:
        """Have the API over TCP and the gateway ask for tokens, or no longer; None: as before.

        The first token for one of them switches it on; only this switches it off.
        """
        plane = self._live()
        policy = await plane.tokens.require(api=api, gateway=gateway)
        await plane.announce_published("token.policy_changed", api=policy.api, gateway=policy.gateway)
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
        assert self._life.tokens is not None, "the token is of a manager that has run"
        return self._life.tokens.while_valid(token)

    def find_token(self, key: str) -> Token | None:
        """The token of this key; None for an unknown key."""
        return self._life.tokens.find(key) if self._life.tokens else None

    # Events

    def subscribe(self) -> AbstractContextManager[trio.MemoryReceiveChannel[models.Event]]:
        """Live events. The channel ends if its reader lags too far behind; `get_events` has the rest."""
        return self._live().events.subscribe()

    def samples(self, wants: Iterable[str]) -> AbstractContextManager[Viewer]:
        """Figures of each second, for one who looks on: of `overview`, `services`, and services by their ids.

        `GET /events?sample=` documents what they are.
        """
        return self._live().sampler.subscribe(wants)

    async def get_events(self, *, after: int = 0, limit: int = 1000) -> tuple[models.Event, ...]:
        """Past events with a higher id than `after`, the oldest first."""
        return await self._live().store.events(after=after, limit=limit)


async def _rule_changed(plane: ControlPlane, kind: str, rule: RoutingRule) -> RoutingRule:
    await plane.announce_published(kind, rule_id=rule.rule_id, name=rule.name)
    return rule
