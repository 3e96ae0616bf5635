"""Instances as child processes of this machine."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import trio

from ..models import InstanceRecord, ServiceSpec, Usage
from . import logs
from .addresses import Ports
from .belonging import drop_copied, stranger
from .cgroup import ControlGroup, remove_abandoned
from .guard import Guard
from .kin import Census, Kin, Strays
from .lifeline import DIRECTORY, Lifeline
from .place import LocalPlace, Shared
from .process import kill_all
from .tokens import Mint
from .upkeep import Upkeep


class LocalLauncher:
    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._lifelines = log_dir / DIRECTORY
        if Mint.found(log_dir) is None:
            drop_copied(log_dir)
        self._shared = Shared(Mint.of(log_dir), Ports(), Census(), Upkeep(log_dir), Guard())

    async def run(self) -> None:
        with closing(self._shared.guard):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._shared.guard.keep)
                nursery.start_soon(self._shared.upkeep.run)
                nursery.start_soon(partial(trio.to_thread.run_sync, remove_abandoned, abandon_on_cancel=True))

    def place(self, spec: ServiceSpec, instance_id: str, slot: int) -> LocalPlace:
        logs.claim(self._log_dir, spec.name)
        log, lifeline = logs.path(self._log_dir, spec.name, slot), Lifeline(self._lifelines / instance_id)
        return LocalPlace(spec, instance_id, slot, log, lifeline, self._shared)

    def stranger(self, record: InstanceRecord) -> str | None:
        found = stranger(record, self._log_dir, self._shared.mint)
        return None if found is None else str(found)

    async def sweep(self, keep: frozenset[str]) -> int:
        census, made = self._shared.census, self._shared.mint.made
        count = await kill_all(
            Strays(census, lambda it: it.token is not None and it.token not in keep and made(it.token))
        )
        # And what has shed its token: it is in the group of an instance that is no more, or holds its lock.
        for file in self._lifelines.iterdir() if self._lifelines.is_dir() else ():
            if file.name not in self._shared.open:
                group, lifeline = ControlGroup.of_instance(file.name), Lifeline(file)
                group.find()
                if group.members() or lifeline.held():
                    group.kill()
                    count += await kill_all(Kin.left_behind(census, group, lifeline))
                group.remove()
                lifeline.remove()
        return count

    def troubles(self) -> tuple[str, ...]:
        return self._shared.upkeep.troubles()

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        return self._shared.upkeep.usage(instance_id)
