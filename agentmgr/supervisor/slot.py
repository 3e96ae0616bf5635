"""Where an instance runs on this machine: its address, environment and limits, and how it is started."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import trio
from attrs import Factory, evolve, fields, frozen

from .. import bootstrap
from ..codec import to_json
from ..core.restart import Cause
from ..models import (
    CheckKind,
    HostConfig,
    InstanceRecord,
    OnManagerDeath,
    ServiceConfig,
    ServiceSpec,
    network_journal,
    utc_now,
)
from ..models.network_journal import SESSIONS_URL
from ..process.handover import FIRST_FD
from . import addresses, environment, listening_sockets, procfs
from .accounts import Account, Identity, find_account
from .cgroup import ControlGroup, move
from .child import LocalChild
from .descendants import ProcessScan
from .forking import ForkServers, Origin
from .guard import Guard
from .host_request import HostRequest
from .instance_lock import InstanceLock
from .instance_tokens import InstanceTokens
from .launcher import MAX_CONCURRENT_STARTS, CannotLaunch, GpuIds
from .limits import Limits
from .notices import Notices, notify_address
from .own_checks import CommandCheck
from .preloads import Preloads, Start
from .process import Process
from .spawn import Launch, Spawned, cannot, spawn
from .upkeep import Upkeep

log = logging.getLogger("agentmgr.supervisor")


@frozen
class Shared:
    """What the slots of one launcher share."""

    tokens: InstanceTokens
    ports: addresses.Ports
    scan: ProcessScan
    upkeep: Upkeep
    guard: Guard
    fork_servers: ForkServers
    preloads: Preloads
    sessions_dir: Path | None = None  #: of the journals
    node_id: str = ""
    withheld: str | None = None  #: the prefix of variables of ours that no instance gets
    sessions_url: str | None = None  #: of the network journal that has them instead
    leases: dict[str, int] = Factory(dict)  #: the ports that are kept for instances which sleep, by their ids
    open: set[str] = Factory(set)  #: the ids of the instances that have a slot
    starts: trio.Semaphore = Factory(lambda: trio.Semaphore(MAX_CONCURRENT_STARTS))
    serving: dict[str, str] = Factory(dict)  #: their services' ids, of those that were seen to listen


class LocalSlot:
    def __init__(
        self,
        spec: ServiceSpec,
        instance_id: str,
        position: int,
        log: Path,
        lock: InstanceLock,
        shared: Shared,
    ) -> None:
        self._spec, self._instance_id, self._position = spec, instance_id, position
        self._log, self._shared = log, shared
        self._listener: socket.socket | None = None
        leased = shared.leases.pop(instance_id, None)
        self._port = leased if spec.port is None else spec.port
        """The last one it had; it is tried first at the next launch."""
        self._lent: int | None = None
        if leased is not None and spec.config.command and self._port == leased:
            self._lent = leased
        elif leased is not None:
            shared.ports.take_back(leased)
        self._child: LocalChild | None = None  #: the last one
        self._lock = lock
        self._group = ControlGroup.of_instance(instance_id, shared.node_id)
        self._limits = Limits(spec.config, self._group.name)
        shared.open.add(instance_id)

    async def place(self, waits: Callable[[str], None]) -> trio.Semaphore:
        await trio.lowlevel.checkpoint()
        return self._shared.starts

    def gains_by_end_of(self, instance_id: str) -> bool:
        return False

    async def launch(self, gpus: GpuIds = None) -> LocalChild:
        try:
            return await self._launch(gpus)
        except OSError as error:
            raise cannot(error) from None

    async def _launch(self, gpus: GpuIds) -> LocalChild:
        spec, config, shared = self._spec, self._spec.config, self._shared
        host = await addresses.resolve(spec.host)
        port = self._lend_port(host) if config.command else self._listen(host)
        token = shared.tokens.new()
        variables = {
            "HOST": host,
            "PORT": str(port),
            "AGENTMGR_SERVICE": spec.name,
            "AGENTMGR_INSTANCE_ID": self._instance_id,
            procfs.TOKEN_VARIABLE: token,
        }
        if shared.node_id:
            variables["AGENTMGR_NODE"] = shared.node_id
        if gpus is not None and environment.GPUS not in environment.names_given(config):
            variables[environment.GPUS] = ",".join(gpus)
        if (url := self._journal_url()) is not None:
            variables[SESSIONS_URL] = network_journal.of_service(environment.expanded(url), spec.service_id)
        account, of_user = self._account()
        variables |= of_user
        with ExitStack() as resources, ExitStack() as spawning:
            notices = _receive_notices(token, resources) if config.command else None
            if notices is not None:
                variables["NOTIFY_SOCKET"] = notify_address(token)
                if config.health_method.kind is CheckKind.WATCHDOG:
                    variables["WATCHDOG_USEC"] = str(int(config.health_check_timeout * 1_000_000))
            lifeline_fd = self._tie_to_manager(token, resources, spawning)
            inherited = [] if self._listener is None else [self._listener.fileno()]
            digest = environment.digest(config)  # before it is read: a change between the two is seen later
            variables = environment.of_child(config, variables, withheld=shared.withheld)
            launch = Launch(
                variables if config.command else bootstrap.environment(variables),
                config.cwd,
                self._log,
                inherited if lifeline_fd is None else [*inherited, lifeline_fd],
                token,
                shared.scan,
                self._group,
                self._lock,
                config.stop_signal,
                account,
            )
            start = self._agent_start(launch, digest)
            spawned = None if start is None else await self._fork(start, launch)
            if spawned is None:
                argv = self._command(host, port) if config.command else self._host(launch.inherited)
                spawned = spawn(argv, launch, held=self._limits.wanted)
            unenforced = await self._confine(spawned)
            record = InstanceRecord(
                instance_id=self._instance_id,
                service_id=spec.service_id,
                slot=self._position,
                pid=spawned.process.pid,
                process_start=spawned.process.start_ticks,
                boot_id=procfs.boot_id(),
                token=token,
                host=addresses.to_dial(host),
                port=port,
                spec_version=spec.version,
                started_at=utc_now(),
                digest=digest,
                gpus=gpus or (),
            )
            shared.upkeep.watch(self._instance_id, record.pid, self._log, config)
            self._child = LocalChild(
                spec,
                record,
                spawned.process,
                self._log,
                spawned.log_start,
                unenforced=unenforced,
                notices=notices,
                group=self._group,
                limits=self._limits,
                command_check=self._command_check(record),
                resources=resources.pop_all(),
                ready_after_s=self._child.ready_after_s if self._child is not None else 0.0,
                must_serve=self._must_serve(),
                on_serving=self._serves,
                on_ready=lambda ask: self._is_ready(start, ask),
            )
            return self._child

    def _journal_url(self) -> str | None:
        """Of the network journal that its host is to be given; None where the manager of this node has put
        that into its environment.
        """
        config = self._spec.config
        return None if SESSIONS_URL in config.env else config.journal_url(self._shared.sessions_url)

    def _command_check(self, record: InstanceRecord) -> CommandCheck | None:
        """As the service's own processes, but without their token: it is none of them."""
        config, method = self._spec.config, self._spec.config.health_method
        if method.kind is not CheckKind.COMMAND:
            return None
        variables = {
            "HOST": record.host,
            "PORT": str(record.port),
            "AGENTMGR_SERVICE": self._spec.name,
            "AGENTMGR_INSTANCE_ID": self._instance_id,
        }
        identity = Identity()
        if config.user is not None:
            account = find_account(config.user)
            identity, variables = account.identity, account.variables | variables
        variables = environment.of_child(config, variables, withheld=self._shared.withheld)
        return CommandCheck(method.path, config.cwd, variables, identity)

    def _must_serve(self) -> bool:
        """Whether it is not ready before it listens. A command may use `$PORT` without naming `{port}`: that
        is known once an instance of it was seen to listen.
        """
        command = self._spec.config.command
        if not command or self._spec.port is not None or any("{port}" in word for word in command):
            return True
        return self._spec.service_id in self._shared.serving.values()

    def _serves(self) -> None:
        self._shared.serving[self._instance_id] = self._spec.service_id

    def _tie_to_manager(self, token: str, resources: ExitStack, spawning: ExitStack) -> int | None:
        """Makes it end with this manager if its `on_manager_death` is `die`: registers a command with the
        guard, and returns the lifeline for an agent's host to watch.

        PR_SET_PDEATHSIG would not do: it acts when the thread that spawned ends, which may be long before.
        """
        config = self._spec.config
        if config.on_manager_death != OnManagerDeath.DIE:
            return None
        if config.command:
            self._shared.guard.watch(token, config.stop_timeout, config.stop_signal)
            resources.callback(self._shared.guard.forget, token)
            return None
        # The lifeline. It carries no data: the host sees its end when this process, which holds the other
        # end, is gone.
        theirs, ours = os.pipe()
        resources.callback(os.close, ours)
        spawning.callback(os.close, theirs)
        return theirs

    def _account(self) -> tuple[Account | None, dict[str, str]]:
        """Of the user it runs as, if that is another one; and its variables. Raises `CannotLaunch`."""
        config = self._spec.config
        if config.user is None:
            return None, {}
        account = find_account(config.user)
        return account, {name: text for name, text in account.variables.items() if name not in config.env}

    def _is_ready(self, start: Start | None, ask: HostRequest) -> None:
        if start is not None:
            self._shared.preloads.is_ready(start, ask)

    def _next_start(self, digest: str) -> Start | None:
        """As an adopted agent would be started now."""
        config = self._spec.config
        if config.command:
            return None
        with suppress(CannotLaunch):
            account, of_user = self._account()
            ours = {"AGENTMGR_SERVICE": self._spec.name} | of_user
            ours = environment.of_child(config, ours, withheld=self._shared.withheld)
            variables = bootstrap.environment(ours)
            origin = Origin.of(config.python, variables, config.user, account)
            return Start.of(self._spec, origin, variables, digest)
        return None

    def _agent_start(self, launch: Launch, digest: str) -> Start | None:
        config = self._spec.config
        if config.command:
            return None
        origin = Origin.of(config.python, launch.environment, config.user, launch.account)
        return Start.of(self._spec, origin, launch.environment, digest)

    async def _fork(self, start: Start, launch: Launch) -> Spawned | None:
        """A hosted agent's process; None where it cannot be forked."""
        argv = self._host(range(FIRST_FD, FIRST_FD + len(launch.inherited)))
        second_stage = self._shared.preloads.stage_for(start, self._position)
        return await self._shared.fork_servers.start(argv, launch, start.origin, second_stage)

    async def _confine(self, spawned: Spawned) -> tuple[str, ...]:
        """Sets its limits, if it has any, and lets its program begin; returns those that could not be set."""
        unenforced: tuple[str, ...] = ()
        with trio.CancelScope(shield=True):
            try:
                if self._limits.wanted:
                    unenforced = await move(self._limits.impose, spawned.process.pid)
            finally:
                await spawned.begin()
        return unenforced

    def adopt(self, record: InstanceRecord) -> LocalChild | None:
        self._group.find()
        if record.boot_id != procfs.boot_id() or not self._is_that(record):
            return None
        try:
            self._group.adopt(record.pid)
            process = Process(
                record.pid,
                record.token,
                self._shared.scan,
                self._group,
                self._lock,
                stop_signal=self._spec.config.stop_signal,
            )
        except OSError:
            return None
        if (
            not self._is_that(record) or process.exited()
        ):  # the number might have changed hands before the pidfd
            process.release()
            return None
        self._port = record.port
        if self._spec.config.command:
            self._lent = record.port
            self._shared.ports.adopt(record.port)
        self._limits.adopt()
        self._shared.upkeep.watch(self._instance_id, record.pid, self._log, self._spec.config)
        try:
            log_start = self._log.stat().st_size
        except OSError:
            log_start = 0
        start = self._next_start(record.digest)
        with ExitStack() as resources:
            notices = _receive_notices(record.token, resources) if self._spec.config.command else None
            if notices is None and self._spec.config.command:  # taken while no manager ran
                log.warning(
                    "cannot receive what %s reports by sd_notify: another program has its socket; "
                    "`agentmgr restart %s` opens another one", self._spec.name, self._spec.name,
                )  # fmt: skip
            return LocalChild(
                self._spec,
                record,
                process,
                self._log,
                log_start,
                notices=notices,
                limits=self._limits,
                command_check=self._command_check(record),
                resources=resources.pop_all(),
                must_serve=self._must_serve(),
                on_serving=self._serves,
                on_ready=lambda ask: self._is_ready(start, ask),
            )

    def close(self, *, lease: bool = False, leave: bool = False) -> None:
        if self._listener is not None:
            self._listener.close()
        if lease and self._port_now is not None:
            self._shared.leases[self._instance_id] = self._port_now
        elif self._lent is not None:
            self._shared.ports.take_back(self._lent)
        self._limits.lift()
        if not self._group.members():  # else the next sweep finds the group by the lock's file
            self._group.remove()
            self._lock.remove()
        self._shared.open.discard(self._instance_id)
        self._shared.serving.pop(self._instance_id, None)
        self._shared.upkeep.forget(self._instance_id)

    @staticmethod
    def _is_that(record: InstanceRecord) -> bool:
        stat = procfs.stat(record.pid)
        return (
            stat is not None
            and stat.start_ticks == record.process_start
            and procfs.token(record.pid) == record.token
        )

    @property
    def _port_now(self) -> int | None:
        return self._port if self._lent is None else self._lent

    def _listen(self, host: str) -> int:
        if self._listener is None:
            fixed = self._spec.port is not None
            try:
                self._listener = addresses.listen(host, self._port, fixed=fixed)
            except CannotLaunch as problem:
                if problem.cause is Cause.PORT_LOST:
                    self._port = None  # the next launch takes another one
                raise
            self._port = int(self._listener.getsockname()[1])
        assert self._port is not None
        return self._port

    def _lend_port(self, host: str) -> int:
        # It stays the same over restarts, unless another process has taken it meanwhile.
        if self._lent is not None:
            inode = listening_sockets.on_port(self._lent)
            if inode is None:
                return self._lent
            if self._spec.port is not None:
                raise CannotLaunch(Cause.PORT_TAKEN, addresses.taken(host, self._lent, fixed=True))
            self._shared.ports.take_back(self._lent)
        self._lent = self._shared.ports.lend(host, self._spec.port)
        return self._lent

    def _command(self, host: str, port: int) -> Sequence[str]:
        words = self._spec.config.command
        return [word.replace("{host}", host).replace("{port}", str(port)) for word in words]

    def _host(self, inherited: Sequence[int]) -> Sequence[str]:
        """`inherited`: the numbers of its listener and, if it has one, its lifeline."""
        config = self._spec.config
        assert config.agent_factory_path is not None
        listener, *lifeline = inherited
        argv = bootstrap.words("agentmgr.agent", config.python)
        argv += [config.agent_factory_path, "--fd", str(listener)]
        if lifeline:
            argv += ["--lifeline-fd", str(lifeline[0])]
        in_redis = SESSIONS_URL in config.env or self._journal_url() is not None
        if config.keeps_sessions and not in_redis and self._shared.sessions_dir is not None:
            argv += ["--journal", str(self._shared.sessions_dir / f"{self._spec.service_id}.db")]
        return argv + _host_options(config)


def _host_options(config: ServiceConfig) -> list[str]:
    """What differs from the defaults, so that `ps` shows what is special; the host has the same defaults."""
    config = evolve(config, max_conversations=config.conversation_limit or None)
    given = {
        field.name: getattr(config, field.name)
        for field in fields(HostConfig)
        if field.name != "agent_factory_path" and getattr(config, field.name) != field.default
    }
    return ["--options", to_json(given)] if given else []


def _receive_notices(token: str, resources: ExitStack) -> Notices | None:
    """Opens the socket that a command reports to by sd_notify; None if there is none to be had."""
    try:
        notices = Notices(token)
    except OSError:
        return None
    resources.callback(notices.close)
    return notices
