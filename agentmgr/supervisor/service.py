"""The instances of one service, and the order in which services start and stop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import trio
from attrs import define, field

from ..core.dependencies import Dependency, cycle, named, stop_order
from ..errors import AgentManagerError, InvalidRequest
from ..models import ServiceSpec, ServiceStatus
from .instance import InstanceTask
from .launcher import Launcher
from .start_permit import Missing

Begin = Callable[["ServiceInstances", ServiceSpec, int], InstanceTask]  #: starts one at that position


@define(eq=False)
class ServiceInstances:
    """Commands on them run one after the other; a stop interrupts the one in progress."""

    spec: ServiceSpec
    launcher: Launcher
    raises: bool = False  #: if it is given up, the supervisor ends
    tasks: list[InstanceTask] = field(factory=list)  #: in a rolling restart a position has two
    kept_ids: dict[int, str] = field(factory=dict)
    """While it is asleep: the ids of its instances, by position. The next ones get them again."""
    lock: trio.Lock = field(factory=trio.Lock)
    restarting: bool = False  #: another instance follows at once on each that ends now
    stops: int = 0  #: how many so far; a command given before the last one does nothing
    command: trio.CancelScope = field(factory=trio.CancelScope)

    @property
    def is_busy(self) -> bool:
        """Whether another command is under way, or an instance is being stopped."""
        return self.lock.locked() or any(
            task.finished and not task.over.is_set() and not task.retired for task in self.tasks
        )

    @property
    def count(self) -> int:
        """How many are to run: those that are, or were given up."""
        return len({task.view.slot for task in self.tasks if not task.stopped})

    def positions(self, spec: ServiceSpec) -> list[int]:
        """Where instances are to run. Of a range: where they do now, and as many more as run at least."""
        bounds = spec.config.instance_range
        if bounds.is_fixed:
            return list(range(bounds.most))
        kept = sorted({task.view.slot for task in self.tasks if not task.stopped} & set(range(bounds.most)))
        return sorted(kept + self.free_positions(spec)[: max(0, bounds.least_awake - len(kept))])

    def free_positions(self, spec: ServiceSpec) -> list[int]:
        """Those of the range at which there is nothing, not even an instance that drains; first those whose
        instances sleep.
        """
        taken = {task.view.slot for task in self.tasks}
        free = [position for position in range(spec.config.instance_range.most) if position not in taken]
        return sorted(free, key=lambda position: position not in self.kept_ids)

    def grow(self, spec: ServiceSpec, count: int, begin: Begin) -> None:
        """Starts what is missing for so many, as far as positions are free."""
        for position in self.free_positions(spec)[: max(0, count - self.count)]:
            begin(self, spec, position)

    def shrink(self, surplus: Collection[str]) -> None:
        """Has the instances of these ids drain, as long as their turns take, and end."""
        for task in self.tasks:
            if task.view.instance_id in surplus and not task.stopped:
                task.retire()
        self.tasks = [task for task in self.tasks if not (task.stopped and task.over.is_set())]

    def fill(self, spec: ServiceSpec, positions: Collection[int], begin: Begin) -> list[InstanceTask]:
        """Starts missing instances, cuts backoffs short, stops surplus ones; returns those that remain."""
        tasks = {task.view.slot: task for task in self.tasks if not task.finished}
        for position in [position for position in tasks if position not in positions]:
            tasks.pop(position).stop()
        for position in positions:
            if position in tasks:
                tasks[position].start_now()
            else:
                tasks[position] = begin(self, spec, position)
        self.end_leases()
        return [tasks[position] for position in sorted(tasks)]

    async def replace(self, old: InstanceTask, new: InstanceTask, *, force: bool) -> None:
        """Ends `old` when `new` is ready; if `new` does not become ready, ends `new` and raises why.

        Where `new` waits for what is reserved for `old`, as for the last GPU, `old` ends first; then `new`
        stays, whatever becomes of it.
        """
        failure: AgentManagerError | None = None
        async with trio.open_nursery() as nursery:

            async def make_room() -> None:
                await new.lacks_room_of(old)
                old.stop(force=force)

            nursery.start_soon(make_room)
            try:
                await new.started()
            except AgentManagerError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            if not old.stopped:
                await self.end([new], force=True)
            raise failure
        await self.end([old], force=force)

    async def end(
        self,
        tasks: Iterable[InstanceTask],
        *,
        force: bool = False,
        wait: bool = True,
        for_good: bool = False,
        unused: str | None = None,
    ) -> None:
        """Stops all `tasks` at once; with `wait`, returns when they have ended."""
        tasks = list(tasks)
        for task in tasks:
            task.stop(force=force, for_good=for_good, unused=unused)
        if wait:
            for task in tasks:
                await task.over.wait()
        self.tasks = [task for task in self.tasks if not task.over.is_set()]
        # If a stop came just as the last of them ended, the caller must start nothing new.
        await trio.lowlevel.checkpoint_if_cancelled()

    def end_leases(self) -> None:
        """It is not asleep any more, and not about to be started either."""
        for instance_id in self.kept_ids.values():
            self.launcher.end_lease(instance_id)
        self.kept_ids = {}


Services = Mapping[str, ServiceInstances]  #: by id


def missing(services: Services, spec: ServiceSpec) -> Missing | None:
    """The first dependency that is not there yet; None when all are."""
    if not spec.config.after:  # most have none, and to look at all services takes longer than a launch
        return None
    tasks = {service.spec.name: service.tasks for service in services.values()}
    for word in spec.config.after:
        needed = Dependency.parse(word)
        found = tasks.get(needed.name, [])
        completed = bool(found) and all(task.view.status is ServiceStatus.COMPLETED for task in found)
        if completed or (not needed.completed and any(task.serving for task in found)):
            continue
        reason = f"waits for service {needed.name!r}" + (" to complete" if needed.completed else "")
        if coming := not all(task.finished for task in found):
            return Missing(reason, coming)
        failed = any(task.view.status is ServiceStatus.ERROR for task in found)
        return Missing(f"{reason}, which {'has failed' if failed else 'is not running'}", coming)
    return None


def refuse_cycles(services: Services, spec: ServiceSpec) -> None:
    """Raises `InvalidRequest` when `spec` would close a cycle of dependencies."""
    if not spec.config.after:
        return
    needs = {service.spec.name: named(service.spec.config.after) for service in services.values()}
    if found := cycle({**needs, spec.name: named(spec.config.after)}):
        raise InvalidRequest(f"these services wait for each other: {' → '.join(found)}")


def stop_waves(services: Services) -> list[list[ServiceInstances]]:
    """Services in groups that may end together, the last started first, dependencies after dependents."""
    ids = {service.spec.name: service_id for service_id, service in services.items()}
    needs = {
        service_id: [ids[name] for name in named(service.spec.config.after) if name in ids]
        for service_id, service in services.items()
    }
    return [[services[service_id] for service_id in wave] for wave in stop_order(needs)]
