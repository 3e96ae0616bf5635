"""The launcher of instances that are processes of this machine."""

from __future__ import annotations

import logging
from contextlib import closing
from functools import partial
from pathlib import Path

import trio

from ..models import ForkServerState, InstanceRecord, ServiceSpec, Usage
from . import logs
from .addresses import Ports
from .belonging import drop_copied, stranger
from .cgroup import ControlGroup, remove_abandoned
from .descendants import Descendants, Orphans, ProcessScan
from .forking import ForkServers
from .guard import Guard
from .instance_lock import DIRECTORY, InstanceLock
from .instance_tokens import InstanceTokens
from .log_file import LogFile
from .preloads import PRELOAD_MAX, Preloads
from .process import kill_all
from .slot import LocalSlot, Shared
from .upkeep import Upkeep

log = logging.getLogger("agentmgr.supervisor")


class LocalLauncher:
    """Starts processes, adopts those of an earlier manager, and ends what that manager left."""

    def __init__(
        self,
        log_dir: Path,
        sessions_dir: Path | None = None,
        *,
        fork_server: bool = True,
        preload_max: int = PRELOAD_MAX,
        node_id: str = "",
        withheld: str | None = None,
        sessions_url: str | None = None,
    ) -> None:
        """`node_id`: of this machine, where a node daemon starts them; sessions are named by it. `withheld`:
        the prefix of variables of ours that no instance gets. `sessions_url`: of the network journal, in
        place of files in `sessions_dir`.
        """
        self._log_dir = log_dir
        self._locks = log_dir / DIRECTORY
        if InstanceTokens.found(log_dir) is None:
            drop_copied(log_dir)
        fork_servers = ForkServers(enabled=fork_server)
        self._shared = Shared(
            InstanceTokens.of(log_dir),
            Ports(),
            ProcessScan(),
            Upkeep(log_dir),
            Guard(),
            fork_servers,
            Preloads(fork_servers, preload_max),
            sessions_dir,
            node_id,
            withheld,
            sessions_url,
        )

    async def run(self) -> None:
        with closing(self._shared.guard):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._shared.guard.keep)
                nursery.start_soon(self._shared.fork_servers.run)
                nursery.start_soon(self._shared.preloads.run)
                nursery.start_soon(self._shared.upkeep.run)
                nursery.start_soon(partial(trio.to_thread.run_sync, remove_abandoned, abandon_on_cancel=True))

    def slot(self, spec: ServiceSpec, instance_id: str, position: int) -> LocalSlot:
        logs.claim(self._log_dir, spec.name)
        log, lock = logs.path(self._log_dir, spec.name, position), InstanceLock(self._locks / instance_id)
        return LocalSlot(spec, instance_id, position, log, lock, self._shared)

    def end_lease(self, instance_id: str) -> None:
        if (port := self._shared.leases.pop(instance_id, None)) is not None:
            self._shared.ports.take_back(port)

    def stranger(self, record: InstanceRecord) -> str | None:
        found = stranger(record, self._log_dir, self._shared.tokens)
        return None if found is None else str(found)

    async def sweep(self, keep: frozenset[str]) -> int:
        scan, made = self._shared.scan, self._shared.tokens.made
        count = await kill_all(
            Orphans(scan, lambda it: it.token is not None and it.token not in keep and made(it.token))
        )
        # And processes that have cleared their environment: in the group of an instance that is no more, or
        # holding its lock.
        for file in self._locks.iterdir() if self._locks.is_dir() else ():
            if file.name not in self._shared.open:
                group = ControlGroup.of_instance(file.name, self._shared.node_id)
                lock = InstanceLock(file)
                group.find()
                if group.members() or lock.held():
                    group.kill()
                    count += await kill_all(Descendants.left_behind(scan, group, lock))
                group.remove()
                lock.remove()
        return count

    def troubles(self) -> tuple[str, ...]:
        return self._shared.upkeep.troubles()

    def fork_servers(self) -> tuple[ForkServerState, ...]:
        return (*self._shared.fork_servers.states(), *self._shared.preloads.states())

    def forget(self, service_id: str) -> None:
        self._shared.preloads.forget(service_id)

    def preloaded(self, service_id: str) -> str | None:
        return self._shared.preloads.summary(service_id)

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        return self._shared.upkeep.usage(instance_id)

    def open_log(self, spec: ServiceSpec, position: int) -> LogFile:
        return LogFile(logs.path(self._log_dir, spec.name, position))

    def move_logs(self, old: str, new: str) -> None:
        try:
            logs.move(self._log_dir, old, new)
        except OSError as error:  # no reason to keep the old name
            log.warning("cannot move the logs of service %s from its old name %s: %s", new, old, error)

    def node_name(self, node_id: str) -> str:
        return ""
