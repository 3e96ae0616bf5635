"""Instances as child processes of this machine."""

from __future__ import annotations

from pathlib import Path

from ..models import ServiceSpec, Usage
from . import logs
from .addresses import Ports
from .place import LocalPlace
from .process import Census, kill_all
from .tokens import Mint
from .upkeep import Upkeep


class LocalLauncher:
    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._mint = Mint.of(log_dir)
        self._ports = Ports()
        self._census = Census()
        self._upkeep = Upkeep()

    async def run(self) -> None:
        await self._upkeep.run()

    def place(self, spec: ServiceSpec, instance_id: str, slot: int) -> LocalPlace:
        log = logs.path(self._log_dir, spec.name, slot)
        return LocalPlace(spec, instance_id, slot, log, self._mint, self._ports, self._census, self._upkeep)

    async def sweep(self, keep: frozenset[str]) -> int:
        made = self._mint.made
        return await kill_all(
            self._census.find,
            lambda living: living.token is not None and living.token not in keep and made(living.token),
        )

    def troubles(self) -> tuple[str, ...]:
        return ("logs cannot be kept within their bounds",) if self._upkeep.logs_fail else ()

    def usage(self, instance_id: str) -> tuple[Usage, ...]:
        return self._upkeep.usage(instance_id)
