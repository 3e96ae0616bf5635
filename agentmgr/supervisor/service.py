"""The instances of one service, and the order in which services start and stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import trio
from attrs import define, field

from ..core.dependencies import cycle, stop_order
from ..errors import AgentManagerError, InvalidRequest
from ..models import ServiceSpec
from .instance import InstanceTask
from .launcher import Launcher


@define(eq=False)
class ServiceInstances:
    """Commands on them run one after the other; a stop interrupts the one in progress."""

    spec: ServiceSpec
    launcher: Launcher
    raises: bool = False  #: if it is given up, the supervisor ends
    tasks: list[InstanceTask] = field(factory=list)  #: in a rolling restart a position has two
    lock: trio.Lock = field(factory=trio.Lock)
    stops: int = 0  #: how many so far; a command given before the last one does nothing
    command: trio.CancelScope = field(factory=trio.CancelScope)

    @property
    def is_busy(self) -> bool:
        """Whether another command is under way, or an instance is being stopped."""
        return self.lock.locked() or any(task.finished and not task.over.is_set() for task in self.tasks)

    def fill(
        self, spec: ServiceSpec, begin: Callable[[ServiceInstances, ServiceSpec, int], InstanceTask]
    ) -> list[InstanceTask]:
        """Starts missing instances, cuts backoffs short, stops surplus ones; returns those that remain."""
        tasks = {task.view.slot: task for task in self.tasks if not task.finished}
        for position in [position for position in tasks if position >= spec.config.instances]:
            tasks.pop(position).stop()
        for position in range(spec.config.instances):
            if position in tasks:
                tasks[position].start_now()
            else:
                tasks[position] = begin(self, spec, position)
        return [tasks[position] for position in sorted(tasks)]

    async def replace(self, old: InstanceTask, new: InstanceTask, *, force: bool) -> None:
        """Ends `old` when `new` is ready; if `new` does not become ready, ends `new` and raises why."""
        try:
            await new.started()
        except AgentManagerError:
            await self.end([new], force=True)
            raise
        await self.end([old], force=force)

    async def end(
        self, tasks: Iterable[InstanceTask], *, force: bool = False, wait: bool = True, for_good: bool = False
    ) -> None:
        """Stops all `tasks` at once; with `wait`, returns when they have ended."""
        tasks = list(tasks)
        for task in tasks:
            task.stop(force=force, for_good=for_good)
        if wait:
            for task in tasks:
                await task.over.wait()
        self.tasks = [task for task in self.tasks if not task.over.is_set()]
        # If a stop came just as the last of them ended, the caller must start nothing new.
        await trio.lowlevel.checkpoint_if_cancelled()


Services = Mapping[str, ServiceInstances]  #: by id


def missing(services: Services, spec: ServiceSpec) -> tuple[str, bool] | None:
    """A dependency that is not ready yet, and whether it is starting; None when all are ready."""
    tasks = {service.spec.name: service.tasks for service in services.values()}
    for name in spec.config.after:
        needed = tasks.get(name, [])
        if not any(task.serving for task in needed):
            return name, not all(task.finished for task in needed)
    return None


def refuse_cycles(services: Services, spec: ServiceSpec) -> None:
    """Raises `InvalidRequest` when `spec` would close a cycle of dependencies."""
    needs = {service.spec.name: service.spec.config.after for service in services.values()}
    if found := cycle({**needs, spec.name: spec.config.after}):
        raise InvalidRequest(f"these services wait for each other: {' → '.join(found)}")


def stop_waves(services: Services) -> list[list[ServiceInstances]]:
    """Services in groups that may end together, the last started first, dependencies after dependents."""
    ids = {service.spec.name: service_id for service_id, service in services.items()}
    needs = {
        service_id: [ids[name] for name in service.spec.config.after if name in ids]
        for service_id, service in services.items()
    }
    return [[services[service_id] for service_id in wave] for wave in stop_order(needs)]
