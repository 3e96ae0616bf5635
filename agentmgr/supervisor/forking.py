"""Starts hosted agents as forks of a process that has imported their host.

There is one fork server (`fork_server`) for each interpreter, user and set of the variables that count only
when Python starts. It is started with the first agent that it can serve. Where none is to be had, agents are
spawned.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import trio
from attrs import define, field, frozen

from ..models import ForkServerState
from . import procfs
from .accounts import Account, Identity
from .fork_server import Fork, ForkServer
from .process import Process
from .spawn import Launch, Spawned, cannot, open_log

log = logging.getLogger("agentmgr.supervisor")

_MOST = 8  #: of one launcher, and as many problems; the one that was not used for longest goes first

# These act when a process starts, or when it loads a library: in a forked one it would be too late. HOME is
# where Python finds packages of the user's; `bootstrap` searches AGENTMGR_PYTHONPATH for those of the host;
# SQLite, which the host imports, asks but once where temporary files go.
_AT_START = re.compile(
    r"(PYTHON|LD_|MALLOC_|GLIBC_|LC_|OPENSSL_|COVERAGE_|COV_CORE_)"
    r"|(LANG|HOME|AGENTMGR_PYTHONPATH|(SQLITE_)?TMPDIR)$"
)


@frozen
class Origin:
    """What the processes have in common that one fork server can fork."""

    python: str | None  #: of another environment; None: this one
    user: str | None
    variables: tuple[tuple[str, str], ...] = field(repr=False)
    identity: Identity = field(factory=Identity, eq=False, repr=False)

    @classmethod
    def of(
        cls, python: str | None, environment: Mapping[str, str], user: str | None, account: Account | None
    ) -> Origin:
        at_start = sorted((name, value) for name, value in environment.items() if _AT_START.match(name))
        return cls(python, user, tuple(at_start), Identity() if account is None else account.identity)


@define
class _OriginState:
    """What is known of one origin."""

    server: ForkServer | None = None
    retry_at: float = 0.0  #: no other server before
    problem: str | None = None  #: of the last one

    def drop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.problem = None if self.server.replaced else self.server.problem
            self.retry_at = trio.current_time() + self.server.pause_s
            self.server = None


class ForkServers:
    """All those of one launcher."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._known: dict[Origin, _OriginState] = {}  # the one that was used last comes last
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled; then they end. Nothing is forked without it."""
        try:
            async with trio.open_nursery() as self._nursery:
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def states(self) -> tuple[ForkServerState, ...]:
        """Those that run, or have failed."""
        return tuple(
            ForkServerState(
                python=origin.python or sys.executable,
                user=origin.user,
                pid=None if known.server is None else known.server.pid,
                forks=0 if known.server is None else known.server.forks,
                memory_bytes=0 if known.server is None else procfs.resident_bytes(known.server.pid),
                problem=known.problem,
            )
            for origin, known in self._known.items()
            if known.server is not None or known.problem is not None
        )

    async def start(
        self, argv: Sequence[str], launch: Launch, origin: Origin, second_stage: ForkServer | None = None
    ) -> Spawned | None:
        """As `spawn.spawn`, for a Python that runs the host: it inherits descriptors from `FIRST_FD` on.

        `second_stage`: the one to fork it, where it can. Returns None where it cannot be forked. Raises
        `CannotLaunch`.
        """
        try:
            fork = None if second_stage is None else await second_stage.fork()
            fork = fork or await self._fork(origin)
            return None if fork is None else _prepare(fork, argv, launch)
        except (OSError, ValueError) as error:
            raise cannot(error, argv[0], launch.cwd) from None

    async def second_stage(
        self, origin: Origin, environment: Mapping[str, str], cwd: str | None, modules: Sequence[str]
    ) -> ForkServer | None:
        """One that has imported these modules too, and is ready or has a problem; it ends with the others.

        None where none can be forked. Raises OSError.
        """
        fork = await self._fork(origin)
        if fork is None:
            return None
        server = await ForkServer.second_stage(fork, origin.python, environment, cwd, modules)
        if self._nursery is None:  # cancelled meanwhile
            with trio.CancelScope() as ended:
                ended.cancel()
                await server.run()
            return None
        self._nursery.start_soon(server.run)
        await server.ready()
        return server

    async def _fork(self, origin: Origin) -> Fork | None:
        if not self._enabled or not os.path.isabs(origin.python or sys.executable):
            return None
        for _ in range(2):  # the first one may just die
            server = self._find(origin)
            fork = None if server is None else await server.fork()
            if fork is not None or server is None:
                return fork
        return None

    def _find(self, origin: Origin) -> ForkServer | None:
        if self._nursery is None:
            return None
        known = self._known.pop(origin) if origin in self._known else _OriginState()
        self._known[origin] = known
        if known.server is not None and not known.server.usable:
            known.drop()
        if known.server is None and trio.current_time() >= known.retry_at:
            try:
                known.server = ForkServer.spawned(origin.python, dict(origin.variables), origin.identity)
            except OSError:  # the spawn that follows says why
                return None
            self._nursery.start_soon(self._keep, known, known.server)
            self._forget_old()
        return known.server

    async def _keep(self, known: _OriginState, server: ForkServer) -> None:
        await server.run()
        if known.server is server:
            known.drop()
        if not server.replaced:
            log.warning("fork server (pid %d): %s; agents start without it", server.pid, server.problem)

    def _forget_old(self) -> None:
        running = [origin for origin, known in self._known.items() if known.server is not None]
        for origin in (*running[:-_MOST], *[it for it in self._known if it not in running][:-_MOST]):
            self._known.pop(origin).drop()


def _prepare(fork: Fork, argv: Sequence[str], launch: Launch) -> Spawned:
    """Raises OSError, and ValueError for a null character; then the process is gone."""
    with ExitStack() as resources, ExitStack() as undo:
        undo.callback(fork.abandon)
        if any("\0" in text for text in (*argv, *launch.environment, *launch.environment.values())):
            raise ValueError("embedded null byte")
        spec = {"argv": list(argv), "environment": dict(launch.environment), "cwd": launch.cwd}
        directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
        resources.callback(os.close, directory)
        output = open_log(launch.output)
        resources.callback(os.close, output)
        log_start = os.fstat(output).st_size
        descriptors = [directory, output, *launch.inherited]
        if (lock := launch.lock.open()) is not None:
            resources.callback(os.close, lock)
            descriptors.append(lock)
        process = Process(
            fork.pid, launch.token, launch.scan, launch.group, launch.lock, stop_signal=launch.stop_signal
        )
        undo.pop_all()
        opened = resources.pop_all()

    async def begin() -> None:
        try:
            with opened:
                await fork.begin(spec, descriptors)
        except OSError as error:
            await process.end(0)  # our own descriptor of its lock is closed by now
            raise cannot(error, argv[0], launch.cwd) from None

    return Spawned(process, log_start, begin)
