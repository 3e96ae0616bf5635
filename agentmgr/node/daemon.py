"""`agentmgr node`: this machine as a node of a cluster, in one directory.

The directory has `node.json` (what this node is), `manager.json` (where its manager is), `generation.json`
(the newest manager that it has obeyed), `lock` (of the daemon that runs), `credentials` (its key and
certificate), `instances` (what runs), `gateways` (its gateway worker), and the `logs`, `sessions` and
`bundles` of its instances.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import trio
from attrs import Factory, evolve, field, frozen

from ..codec import from_answer, parse_json, to_json
from ..credentials import Credentials
from ..dialing import NODE_PROTOCOL, ManagerAddress, NotNow, dial, dial_patience
from ..errors import AgentManagerError, CannotReachManager, CannotUseCluster, InvalidRequest
from ..generation import Generation
from ..models.fields import new_id
from ..process.locks import try_lock
from ..process.trust import distrust
from ..replacing import replace
from ..supervisor import procfs, system
from ..supervisor.local import LocalLauncher
from ..supervisor.preloads import PRELOAD_MAX
from ..version import __version__
from ..worker.spec import ClusterManager
from .bundles import NodeBundles
from .following import manager_file
from .gateways import NodeGateways, OwnFacts
from .joining import (
    JOIN_PROTOCOL,
    Greeting,
    JoinAnswer,
    JoinRequest,
    Secret,
    join,
    learn_ca,
    receive,
    renew,
    tell_of_newer,
)
from .logs import NodeLogs
from .node import Node
from .protocol import AwaitGateway, Facts, GatewayTroubles, KeepGateways, KillGateway
from .session_archives import SessionArchives
from .session_moves import MOVE_ORDERS, SessionMoves

logger = logging.getLogger(__name__)

T = TypeVar("T")

_JOIN_PATIENCE_S = 30.0  #: for a manager that is not there yet, or is busy
_JOIN_PAUSE_S = 0.5
_RENEW_RETRY_S = 600.0
_LOOK_S = 10.0  #: at whether it is needed
_TELL_S = 5.0


@frozen
class NodeConfig:
    """The content of `node.json`: what this node is, also when its daemon is started again."""

    node_id: str
    manager: ManagerAddress  #: as `--join` had it; where it is now says another file (`node.following`)
    name: str = ""  #: as the manager calls it
    address: str = ""  #: where other nodes reach it; empty: where its link comes from
    labels: Mapping[str, str] = Factory(dict)
    resources: Mapping[str, float] = Factory(dict)
    certfile: str | None = None  #: for the clients of its gateway
    keyfile: str | None = None
    directory: str = field(default="", eq=False)  #: where it was written, by which a copy is known

    @classmethod
    def read(cls, directory: Path) -> NodeConfig | None:
        """None where the directory is none of a node. Raises `CannotUseCluster`."""
        file = directory / _FILE
        try:
            return from_answer(parse_json(file.read_bytes()), cls)
        except FileNotFoundError:
            return None
        except (OSError, InvalidRequest) as error:
            raise CannotUseCluster(
                f"{file} cannot be read ({error}): remove {directory} if nothing runs there, and join again"
            ) from None

    def refuse_copy(self, directory: Path) -> None:
        """Two daemons of one node would take its instances from each other. Raises `CannotUseCluster` where
        this was read from a copy of a directory that is there still; one that was moved is all right.
        """
        original = Path(self.directory or directory)
        try:
            if original.samefile(directory) or (there := NodeConfig.read(original)) is None:
                return
        except (OSError, CannotUseCluster):
            return
        if there.node_id == self.node_id:
            raise CannotUseCluster(
                f"{directory} is a copy of {original}, which is node {self.name}: use that one, or remove "
                "this one and join another node, with --join and a secret of `agentmgr nodes invite`"
            )

    def write(self, directory: Path) -> None:
        """Where it says anything new: a full disk is no reason not to run. Raises `CannotUseCluster`."""
        file, content = directory / _FILE, to_json(evolve(self, directory=str(directory))).encode()
        try:
            if not (file.is_file() and file.read_bytes() == content):
                replace(file, content, lasting=True)
        except OSError as error:
            raise CannotUseCluster(f"{file} cannot be written: {error.strerror or error}") from None


_FILE = "node.json"


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Makes the directory and holds its lock, so that it has one daemon. Raises `CannotUseCluster`."""
    try:
        # Services that run as other users than root must reach their bundles below it.
        directory.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        if (problem := distrust(directory)) is not None:
            raise CannotUseCluster(problem)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotUseCluster(
            f"{directory} cannot be used ({error.strerror}): name another one with --directory"
        ) from None
    try:
        if not try_lock(fd):
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            raise CannotUseCluster(
                f"the daemon of a node runs in {directory} already, pid {pid or 'unknown'}: end that one, or "
                "name another directory with --directory"
            )
        with suppress(OSError):  # a full disk: what runs here needs its daemon all the same
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def runs_in(directory: Path) -> str | None:
    """The pid of the daemon that holds the directory, if it is known; None: there is none."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if try_lock(fd) else os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(fd)


class NodeDaemon:
    """The parts of a node, wired; its directory is `held`."""

    def __init__(
        self,
        directory: Path,
        config: NodeConfig,
        *,
        fork_server: bool = True,
        preload_max: int = PRELOAD_MAX,
    ) -> None:
        self.directory, self.config = directory, config
        self._credentials = Credentials(directory / "credentials")
        self._source = config.address if _is_local(config.address) else None
        self._manager = manager_file(directory)
        self._patience = dial_patience()
        self._renew_at = -float("inf")
        facts = Facts(
            node_id=config.node_id,
            host_name=socket.gethostname(),
            address=config.address,
            labels=config.labels,
            resources=config.resources,
            boot_id=procfs.boot_id(),
            agentmgr=__version__,
            python=platform.python_version(),
            daemon_id=new_id("dmn"),
        )
        logs = directory / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        launcher = LocalLauncher(
            logs,
            directory / "sessions",
            fork_server=fork_server,
            preload_max=preload_max,
            node_id=config.node_id,
        )
        self.node = Node(
            directory,
            launcher,
            facts,
            self._dial,
            bundles=NodeBundles(directory / "bundles"),
            logs=NodeLogs(logs),
            sessions=SessionArchives(directory / "sessions"),
            moved=self._manager.moved,
        )
        own = OwnFacts(
            config.node_id,
            self._credentials.directory,
            ClusterManager(str(self._manager.path), self._source),
            config.certfile,
            config.keyfile,
        )
        say_troubles = lambda reasons: self.node.stand("gateways", GatewayTroubles(reasons))  # noqa: E731
        self.gateways = NodeGateways(directory / "gateways", own, say_troubles)
        self.node.add(self.gateways.run)
        self.node.handle(KeepGateways, self.gateways.keep)
        self.node.handle(AwaitGateway, self.gateways.ended)
        self.node.handle(KillGateway, self.gateways.kill)
        moves = SessionMoves(directory / "sessions", self.node.runs)
        for kind in MOVE_ORDERS:
            self.node.handle(kind, moves.answer)
        self.node.given_up = lambda: self.gateways.keep(KeepGateways(()))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; the instances live on. Counts as started when those of before are adopted."""
        system.check()
        await self.node.run(task_status=task_status)

    async def unneeded(self, for_s: float) -> None:
        """Returns when it has run nothing, and had no manager, for that long. It has no gateways then."""
        needed_at = trio.current_time()
        while trio.current_time() < needed_at + for_s:
            await trio.sleep(min(_LOOK_S, for_s))
            runs = any(instance.run is not None for instance in self.node.instances.values())
            if runs or self.node.linked or self.gateways.serve_clients:
                needed_at = trio.current_time()
        await self.gateways.end()

    async def _dial(self) -> trio.abc.Stream:
        await self._renew_if_due()
        manager = self._manager.to_dial()
        stream = await dial(
            manager, self._credentials, NODE_PROTOCOL, source=self._source, patience=self._patience
        )
        if not self.config.address:
            address = stream.transport_stream.socket.getsockname()[0]
            self.node.facts = evolve(self.node.facts, address=address)
        return stream

    async def _renew_if_due(self) -> None:
        """Raises `CannotUseCluster` where the certificate has expired."""
        until = self._credentials.valid_until()
        if until is not None and until <= datetime.now(UTC):
            raise CannotUseCluster(expired(until))
        if trio.current_time() < self._renew_at or not self._credentials.is_due():
            return
        self._renew_at = trio.current_time() + _RENEW_RETRY_S
        try:
            manager = self._manager.read()
            await renew(manager, self._credentials, self.config.node_id, source=self._source)
            logger.info("this node has a new certificate")
        except (OSError, AgentManagerError) as error:
            logger.warning("the certificate of this node, good until %s, was not renewed: %s", until, error)

    async def tell_former_manager(self) -> None:
        """One that lives on, or comes back, where the manager was before: it would take this node for lost,
        and start a second one of all.
        """
        told: tuple[ManagerAddress, Generation] | None = None
        while True:
            await trio.sleep(_TELL_S)
            newer = self.node.obeys
            if not self.node.linked or newer is None:
                continue
            with suppress(OSError, AgentManagerError):
                former = self._manager.before()
                if former is None or told == (former, newer):
                    continue
                credentials, node_id = self._credentials, self.config.node_id
                await tell_of_newer(former, credentials, node_id, newer, source=self._source)
                told = former, newer  # or it is this very manager, by another name

    async def keep_certificate(self) -> None:
        """Renews it in time also while the link is up."""
        while True:
            await trio.sleep(_RENEW_RETRY_S)
            try:
                await self._renew_if_due()
            except CannotUseCluster as error:
                logger.error("%s", error)


def expired(until: datetime) -> str:
    return (
        f"the certificate of this node has expired, on {until:%Y-%m-%d}: join again, with --join and a "
        "secret of `agentmgr nodes invite`; what runs here is kept"
    )


def needs_secret(directory: Path) -> str | None:
    """Why a secret is needed to start the daemon there; None: its certificate is good."""
    until = Credentials(directory / "credentials").valid_until()
    if until is None:
        return "this machine has not joined a cluster yet"
    return expired(until) if until <= datetime.now(UTC) else None


async def unwelcome(directory: Path, config: NodeConfig) -> str | None:
    """Why the manager does not take this node for one of its own, although the certificate is good; None: it
    does, or cannot be asked now. The certificate is renewed by that.
    """
    source = config.address if _is_local(config.address) else None
    try:
        manager = manager_file(directory).read()
        await renew(manager, Credentials(directory / "credentials"), config.node_id, source=source)
    except (OSError, NotNow, CannotUseCluster):
        return None
    except (InvalidRequest, CannotReachManager) as error:
        return error.message
    return None


async def join_cluster(
    directory: Path, config: NodeConfig, secret: Secret, at: ManagerAddress | None = None
) -> NodeConfig:
    """Joins, and keeps what this node is now. The directory is `held`. `at`: where the manager is, unless it
    is where `config` has it.

    Waits some time for a manager that is not there yet. Raises `InvalidRequest`, `CannotReachManager`,
    `CannotUseCluster`.
    """
    credentials = Credentials(directory / "credentials")
    source = config.address if _is_local(config.address) else None
    try:
        credentials.directory.mkdir(mode=0o700, exist_ok=True)
        request = credentials.make_request().decode()
    except (OSError, ValueError) as error:
        raise CannotUseCluster(f"the key in {credentials.directory} cannot be used: {error}") from None
    ask = JoinRequest(
        config.node_id,
        request,
        secret.word,
        config.name or socket.gethostname(),
        config.address,
        config.labels,
        config.resources,
    )

    manager = at or config.manager

    async def once() -> JoinAnswer:
        ca = await learn_ca(manager, secret.fingerprint, source=source)
        return await join(manager, credentials, ask, ca, source=source)

    answer = await _patiently(manager, once)
    joined = evolve(config, name=answer.name)
    joined.write(directory)
    manager_file(directory).write(manager)
    return joined


async def move(directory: Path, config: NodeConfig, manager: ManagerAddress) -> None:
    """Has the daemon that runs there, and its gateway, link with the manager at that address; that it is one
    of this node's cluster is made sure of first. Raises `CannotReachManager`, `CannotUseCluster`.
    """
    source = config.address if _is_local(config.address) else None
    credentials = Credentials(directory / "credentials")

    async def look() -> None:
        stream = await dial(manager, credentials, JOIN_PROTOCOL, source=source)
        try:
            await receive(stream, Greeting, manager)
        finally:
            await trio.aclose_forcefully(stream)

    await _patiently(manager, look)
    manager_file(directory).write(manager)


async def _patiently(manager: ManagerAddress, ask: Callable[[], Awaitable[T]]) -> T:
    """What a manager answers that may not be there yet, or be busy. Raises what `ask` raises of ours."""
    give_up_at = trio.current_time() + _JOIN_PATIENCE_S
    while True:
        try:
            return await ask()
        except NotNow:
            if trio.current_time() > give_up_at:
                raise
        except OSError as error:
            if trio.current_time() > give_up_at:
                why = error.strerror or error
                raise CannotReachManager(
                    f"no manager answers at {manager} ({why}): does it run with `--cluster joined` "
                    "or `--cluster ray`, and listen there (`--cluster-host`, `--cluster-port`)?"
                ) from None
        await trio.sleep(_JOIN_PAUSE_S)


def new_config(manager: ManagerAddress) -> NodeConfig:
    return NodeConfig(new_id("nod"), manager)


def _is_local(address: str) -> bool:
    """Whether connections can come from it: behind a translation of addresses they cannot."""
    if not address:
        return False
    try:
        (family, kind, protocol, _, name) = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.bind(name)
    except OSError:
        return False
    return True


@asynccontextmanager
async def running(daemon: NodeDaemon) -> AsyncIterator[None]:
    """Within it the daemon runs."""
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        nursery.start_soon(daemon.keep_certificate)
        nursery.start_soon(daemon.tell_former_manager)
        yield
        await daemon.node.leave()
        nursery.cancel_scope.cancel()
