"""Second stages: fork servers that have imported what an agent imports, for its next starts.

Once an agent is ready, its host is asked what it has imported (`agent.loaded`), and `core.preloading` decides
what of that a second stage imports. It is made beside the rest, one at a time. Agents share one if they have
the same interpreter, user, environment, directory and modules: code may read its environment, and files by
relative names, while it is imported.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import trio
from attrs import Factory, define, field, frozen

from .. import bootstrap
from ..core import preloading
from ..core.preloading import Kept
from ..core.proof import HEALTH_PATH
from ..models import ForkServerState, ServiceSpec
from ..process.paths import factory_parts
from . import procfs
from .fork_server import ForkServer
from .forking import ForkServers, Origin
from .host_request import HostRequest

log = logging.getLogger("agentmgr.supervisor")

PRELOAD_MAX = 4

_ASKING_S = 10.0
_MAX_ANSWER_BYTES = 4 * 2**20  # ten thousand modules take 400 KB

# They differ from instance to instance, and are set when it starts.
_OF_AN_INSTANCE = ("HOST", "PORT", "AGENTMGR_SERVICE", "AGENTMGR_INSTANCE_ID", procfs.TOKEN_VARIABLE)


@frozen
class Start:
    """How one instance of an agent is started."""

    spec: ServiceSpec
    origin: Origin
    environment: tuple[tuple[str, str], ...] = field(repr=False)
    digest: str = field(repr=False)  #: of its files

    @classmethod
    def of(cls, spec: ServiceSpec, origin: Origin, environment: Mapping[str, str], digest: str) -> Start:
        shared = {name: value for name, value in environment.items() if name not in _OF_AN_INSTANCE}
        return cls(spec, origin, tuple(sorted(shared.items())), digest)

    def directories(self) -> Iterator[Path]:
        """Those that are searched before installed packages."""
        cwd = Path(self.spec.config.cwd or ".").absolute()
        yield cwd
        file, *_ = factory_parts(self.spec.config.agent_factory_path or "")
        if file.endswith(".py"):
            yield (cwd / file).parent
        searched = dict(self.environment).get(bootstrap.ASIDE, "")
        yield from (cwd / entry for entry in searched.split(os.pathsep) if searched)


@frozen
class _Key:
    """What a second stage is made of."""

    origin: Origin
    environment: tuple[tuple[str, str], ...] = field(repr=False)
    cwd: str | None
    modules: tuple[str, ...] = field(repr=False)


@define
class _Stage:
    server: ForkServer
    kept: Kept
    failed: str | None  #: a module that was asked for by name and cannot be imported


@define
class _ServiceImports:
    """What is known of one service."""

    starts: Counter[int] = Factory(Counter)  #: of the instance at each position
    modules: tuple[str, ...] = ()  #: that its next starts want
    reported: tuple[str, str] | None = None  #: the option, and the digest of the files, which that is of
    problem: str | None = None  #: why it is not preloaded
    key: _Key | None = None  #: of the second stage that they want
    unfit: _Key | None = None  #: the last one that must not be forked, or need not be


class Preloads:
    """All those of one launcher."""

    def __init__(self, fork_servers: ForkServers, most: int = PRELOAD_MAX) -> None:
        self._fork_servers, self._most = fork_servers, most
        self._known: dict[str, _ServiceImports] = {}  # by service id
        self._stages: dict[_Key, _Stage] = {}
        self._ready: OrderedDict[str, tuple[Start, HostRequest]] = OrderedDict()  # by service id
        self._news = trio.Event()

    def stage_for(self, start: Start, position: int) -> ForkServer | None:
        """The second stage that is to fork the instance at this position."""
        known = self._known.setdefault(start.spec.service_id, _ServiceImports())
        known.starts[position] += 1
        key = known.key = self._key(start, known)
        stage = None if key is None else self._stages.get(key)
        if stage is None or key is None:
            return None
        if not stage.server.usable:
            self._end(key)
            return None
        if (hiding := _hidden(start, stage.server.packages)) is not None:
            known.problem = f"{hiding} has the name of a module that would be preloaded: rename it"
            return None
        known.problem = None
        stage.kept = Kept(stage.kept.uses + 1, trio.current_time())
        return stage.server

    def is_ready(self, start: Start, ask: HostRequest) -> None:
        """An instance that was started so, or adopted, is ready, and can be asked what it has imported."""
        self._known.setdefault(start.spec.service_id, _ServiceImports())
        self._ready[start.spec.service_id] = start, ask
        self._news.set()

    def forget(self, service_id: str) -> None:
        """The service is no more."""
        self._ready.pop(service_id, None)
        if self._known.pop(service_id, None) is not None:
            self._end_unused()

    def summary(self, service_id: str) -> str | None:
        """What its next start finds imported; for the user. None where there is nothing to say."""
        known = self._known.get(service_id)
        if known is None:
            return None
        if known.problem is not None:
            return f"not preloaded: {known.problem}"
        stage = None if known.key is None else self._stages.get(known.key)
        if stage is None or stage.server.problem is not None:
            return None
        but = "" if stage.failed is None else f", but {stage.failed}"
        return f"{stage.server.imported} modules preloaded, in process {stage.server.pid}{but}"

    def states(self) -> tuple[ForkServerState, ...]:
        """Those that run."""
        return tuple(
            ForkServerState(
                python=key.origin.python or sys.executable,
                user=key.origin.user,
                pid=stage.server.pid,
                forks=stage.server.forks,
                memory_bytes=procfs.resident_bytes(stage.server.pid),
                problem=None,
                imported=stage.server.imported,
            )
            for key, stage in self._stages.items()
            if stage.server.problem is None
        )

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            while self._ready:
                _, (start, ask) = self._ready.popitem(last=False)
                try:
                    await self._preload(start, ask)
                except OSError as error:  # of a fork, of descriptors; it is tried again after its next start
                    log.info("cannot preload what service %s imports: %s", start.spec.name, error)

    async def _preload(self, start: Start, ask: HostRequest) -> None:
        known = self._known.get(start.spec.service_id)
        if known is None or self._most == 0:
            return
        await self._find_modules(start, ask, known)
        key = known.key = self._key(start, known)
        self._end_unused()
        if key is None or key in self._stages or key == known.unfit:
            return
        kept = [(it, stage.kept) for it, stage in self._stages.items()]
        may, goes = preloading.makes_room(kept, most=self._most, starts=max(known.starts.values(), default=1))
        if not may:
            known.problem = f"preload_max is reached ({self._most})"
            return
        server = await self._fork_servers.second_stage(
            key.origin, dict(key.environment), key.cwd, key.modules
        )
        if server is None:
            return
        asked_for = preloading.chosen(start.spec.config.preload) is not None
        failed = server.failed if asked_for else None  # else the agent can do without it
        known.problem = server.problem or (failed if server.imported == 0 else None)
        if (what := known.problem or failed) is not None:
            log.log(
                logging.WARNING if asked_for else logging.INFO,
                "cannot preload what service %s imports: %s", start.spec.name, what,
            )  # fmt: skip
        if server.problem is not None or server.imported == 0:
            known.unfit = key
            server.close()
            return
        if self._known.get(start.spec.service_id) is not known:  # it was unregistered meanwhile
            server.close()
            return
        if goes is not None:
            self._end(goes)
        self._stages[key] = _Stage(server, Kept(0, trio.current_time()), failed)

    async def _find_modules(self, start: Start, ask: HostRequest, known: _ServiceImports) -> None:
        config = start.spec.config
        if known.reported == (config.preload, start.digest):
            return
        modules = None
        if preloading.chosen(config.preload) is None:
            with trio.move_on_after(_ASKING_S):
                answer = await ask(HEALTH_PATH, {"only": "modules"}, max_answer_bytes=_MAX_ANSWER_BYTES)
                names = None if answer is None else answer.get("modules")
                modules = [name for name in names if isinstance(name, str)] if names else []
            if modules is None:  # it is busy, and is asked again after its next start
                return
        found = preloading.to_import(config.preload, modules, config.agent_factory_path or "")
        if config.preload != preloading.AUTO or not {*found} <= {*known.modules}:
            known.modules = found
        known.reported, known.problem = (config.preload, start.digest), None

    @staticmethod
    def _key(start: Start, known: _ServiceImports) -> _Key | None:
        if not known.modules or start.spec.config.preload == preloading.OFF:
            return None
        return _Key(start.origin, start.environment, start.spec.config.cwd, known.modules)

    def _end(self, key: _Key) -> None:
        self._stages.pop(key).server.close()

    def _end_unused(self) -> None:
        """Those that no service wants any more."""
        for key in self._stages.keys() - {known.key for known in self._known.values()}:
            self._end(key)


def _can_be_imported(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith((".py", ".so")) or os.path.isfile(os.path.join(entry.path, "__init__.py"))


def _hidden(start: Start, packages: list[str]) -> Path | None:
    """A file of the author's that he would get a preloaded module in place of."""
    for directory in start.directories():
        with suppress(OSError):
            entries = {entry.name.partition(".")[0]: entry for entry in os.scandir(directory)}
            for name in preloading.hidden(entries, packages):
                if _can_be_imported(entries[name]):
                    return Path(entries[name].path)
    return None
