"""What runs of one registration, and in which order the registrations start and stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import trio
from attrs import define, field

from ..core.dependencies import cycle, stop_order
from ..errors import AgentManagerError, InvalidRequest
from ..models import ServiceSpec
from .instance import Life
from .launcher import Launcher


@define(eq=False)
class Service:
    """Commands on it take turns; a stop interrupts the one at work."""

    spec: ServiceSpec
    launcher: Launcher
    raises: bool = False  #: when it is given up
    lives: list[Life] = field(factory=list)  #: in a rolling restart a slot has two
    turn: trio.Lock = field(factory=trio.Lock)
    stops: int = 0  #: commands that were given before the last stop are void
    command: trio.CancelScope = field(factory=trio.CancelScope)

    def fill(self, spec: ServiceSpec, begin: Callable[[Service, ServiceSpec, int], Life]) -> list[Life]:
        """Starts what is missing, hurries what waits, stops what is too many; returns those to be."""
        lives = {life.view.slot: life for life in self.lives if not life.finished}
        for slot in [slot for slot in lives if slot >= spec.config.instances]:
            lives.pop(slot).stop()
        for slot in range(spec.config.instances):
            if slot in lives:
                lives[slot].start_now()
            else:
                lives[slot] = begin(self, spec, slot)
        return [lives[slot] for slot in sorted(lives)]

    async def replace(self, old: Life, new: Life, *, force: bool) -> None:
        """Ends the old one when the new one is ready, or the new one when it does not get so."""
        try:
            await new.started()
        except AgentManagerError:
            await self.end([new], force=True)
            raise
        await self.end([old], force=force)

    async def end(self, lives: Iterable[Life], *, force: bool = False, wait: bool = True) -> None:
        """Tells all of them to end, then waits until nothing is left of them."""
        lives = list(lives)
        for life in lives:
            life.stop(force=force)
        if wait:
            for life in lives:
                await life.over.wait()
        self.lives = [life for life in self.lives if not life.over.is_set()]
        # A stop may have come just as the last of them ended: then nothing new may begin.
        await trio.lowlevel.checkpoint_if_cancelled()


Services = Mapping[str, Service]  #: by id


def missing(services: Services, spec: ServiceSpec) -> tuple[str, bool] | None:
    """A service that this one must wait for, and whether it is on its way; None when all are ready."""
    lives = {service.spec.name: service.lives for service in services.values()}
    for name in spec.config.after:
        needed = lives.get(name, [])
        if not any(life.serving for life in needed):
            return name, not all(life.finished for life in needed)
    return None


def refuse_cycles(services: Services, spec: ServiceSpec) -> None:
    """Raises `InvalidRequest` when it would wait for something that waits for it."""
    needs = {service.spec.name: service.spec.config.after for service in services.values()}
    if found := cycle({**needs, spec.name: spec.config.after}):
        raise InvalidRequest(f"these services wait for each other: {' → '.join(found)}")


def stop_waves(services: Services) -> list[list[Service]]:
    """Those that may end at the same time, the last started first; what others need comes after them."""
    ids = {service.spec.name: service_id for service_id, service in services.items()}
    needs = {
        service_id: [ids[name] for name in service.spec.config.after if name in ids]
        for service_id, service in services.items()
    }
    return [[services[service_id] for service_id in wave] for wave in stop_order(needs)]
