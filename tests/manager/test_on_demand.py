"""Services that sleep and wake on trio's own clock, and real ones behind a gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from agentmgr.core.restart import Exit
from agentmgr.errors import ServiceFailedToStart, WrongState
from agentmgr.manager.events import EventLog
from agentmgr.manager.on_demand import OnDemand
from agentmgr.manager.registry import Registry
from agentmgr.models import DesiredStatus, Instance, RestartMode, ServiceConfig, ServiceSpec, StartMode
from agentmgr.supervisor import NullRecorder, Supervisor
from agentmgr.testing import Behaviour, FakeLauncher, MemoryStore

COMMAND = ("serve", "{port}")


def spec(name: str = "svc", **config: Any) -> ServiceSpec:
    config = {"command": COMMAND, "start": StartMode.ON_DEMAND, "idle_stop": 60.0, **config}
    return ServiceSpec(name, ServiceConfig(**config), desired_status=DesiredStatus.RUNNING)


class World(NullRecorder):
    """A supervisor of fakes, and what stands for the gateways: their connections, and what they know."""

    def __init__(self, *specs: ServiceSpec, launcher: FakeLauncher | None = None) -> None:
        self.launcher = launcher or FakeLauncher()
        self.store = MemoryStore()
        self.registry = Registry(self.store, specs, ())
        self.supervisor = Supervisor(self, log_dir="unused", launcher=self.launcher)
        self.connections: set[str] = set()  #: ids of instances that have one
        self.unfinished: set[str] = set()
        self.on_published: Callable[[], Awaitable[bool]] = self._at_once
        self.on_demand = OnDemand(
            self.registry,
            self.supervisor,
            self,  # type: ignore[arg-type]
            EventLog(self.store),
            connections=lambda instances: sum(i.instance_id in self.connections for i in instances),
            unfinished=self._unfinished,
        )

    # As a publisher

    def changed(self) -> None:
        pass

    async def published(self) -> bool:
        return await self.on_published()

    async def _at_once(self) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def _unfinished(self, specs: object) -> set[str]:
        await trio.lowlevel.checkpoint()
        return self.unfinished

    # As a recorder

    def instance_changed(self, instance: Instance) -> None:
        self.on_demand.instance_changed(instance)

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.supervisor.run)
            nursery.start_soon(self.on_demand.run)
            task_status.started()

    # What a test does

    def awake(self, name: str = "svc") -> bool:
        return any(child.name == name for child in self.launcher.running)

    def instance(self) -> str:
        (instance,) = self.supervisor.instances()
        return instance.instance_id

    def disconnect(self) -> None:
        (instance_id,) = self.connections
        self.connections.clear()
        self.on_demand.vacated(instance_id)

    async def kinds(self) -> list[str]:
        return [event.kind for event in await self.store.events()]


@pytest.fixture
async def begin(nursery) -> Callable[..., Awaitable[World]]:
    async def begin(*specs: ServiceSpec, **parts: Any) -> World:
        world = World(*specs, **parts)
        for each in specs:
            await world.store.add_service(each)
        await nursery.start(world.run)
        return world

    return begin


async def test_it_sleeps_wakes_and_sleeps_again_with_its_id_and_port(begin, autojump_clock) -> None:
    svc = spec()
    world = await begin(svc)
    await trio.sleep(1)
    assert not world.launcher.children
    seen = set()
    for count in (1, 2):
        for _ in range(200):
            world.on_demand.wake(svc.service_id)
        await trio.sleep(1)
        assert (len(world.launcher.children), world.awake()) == (count, True)
        seen.add(world.instance())
        world.connections.add(world.instance())
        await trio.sleep(1000)
        assert world.awake()
        world.disconnect()
        await trio.sleep(59)
        assert world.awake()
        await trio.sleep(2)
        assert (world.awake(), world.supervisor.instances()) == (False, ())
        assert world.launcher.leases == seen
        assert world.supervisor.kept_ids() == {svc.service_id: next(iter(seen))}
    assert len(seen) == 1
    assert await world.kinds() == ["service.woken", "service.asleep"] * 2
    await world.supervisor.stop(svc.service_id)
    assert (world.launcher.leases, world.supervisor.kept_ids()) == (set(), {})


async def test_several_that_wake_it_at_once_are_one_wake(begin, autojump_clock) -> None:
    svc = spec()
    world = await begin(svc)
    while not world.awake():
        world.on_demand.wake(svc.service_id)
        await trio.lowlevel.checkpoint()
    await trio.sleep(1)
    assert (await world.kinds()).count("service.woken") == 1


async def test_one_that_nobody_came_to_after_all_falls_asleep_too(begin, autojump_clock) -> None:
    world = await begin(spec())
    world.on_demand.wake(*world.registry.by_id)
    await trio.sleep(59)
    assert world.awake()
    await trio.sleep(2)
    assert not world.awake()


async def test_a_turn_or_a_host_that_says_nothing_keeps_it_awake(begin, autojump_clock) -> None:
    world = await begin(spec(command=(), agent_factory_path="agent.py"))
    world.on_demand.wake(*world.registry.by_id)
    await trio.sleep(1)
    (child,) = world.launcher.running
    for quiet_s in (None, 0.0):
        child.quiet_s = quiet_s
        await trio.sleep(1000)
        assert world.awake()
    over_at = trio.current_time()
    while world.awake():
        child.quiet_s = trio.current_time() - over_at
        await trio.sleep(1)
    assert child.ended_at == pytest.approx(over_at + 60, abs=2)
    assert child.drained_with == 1012


async def test_whoever_comes_up_to_the_end_keeps_it(begin, autojump_clock) -> None:
    """While gateways learn of it: a client that waits, one that has a seat, one that came and left."""
    svc = spec()
    world = await begin(svc)
    world.on_demand.wake(svc.service_id)
    await trio.sleep(1)
    (child,) = world.launcher.running
    came: list[float] = []

    def waits() -> None:
        world.on_demand.wake(svc.service_id)

    def has_a_seat() -> None:
        world.connections.add(world.instance())

    def came_and_left() -> None:
        world.on_demand.vacated(world.instance())

    for act in (waits, has_a_seat, came_and_left):

        async def published(act: Callable[[], None] = act) -> bool:
            assert world.on_demand.falling_asleep == {svc.service_id}
            act()
            came.append(trio.current_time())
            world.on_published = world._at_once
            await trio.sleep(1)
            return True

        world.on_published = published
        before = len(came)
        while len(came) == before:  # noqa: ASYNC110
            await trio.sleep(1)
        await trio.sleep(50)
        assert world.launcher.running == [child]
        assert not world.on_demand.falling_asleep
        if world.connections:
            world.disconnect()
    first, second, third = came
    assert second - first == pytest.approx(60, abs=2)
    assert third - second == pytest.approx(50 + 60, abs=3)
    await trio.sleep(15)
    assert not world.awake()
    assert len(world.launcher.children) == 1


async def test_while_a_worker_does_not_answer_nothing_falls_asleep(begin, autojump_clock) -> None:
    world = await begin(spec())

    async def unknown() -> bool:
        await trio.sleep(2)
        return False

    world.on_published = unknown
    world.on_demand.wake(*world.registry.by_id)
    await trio.sleep(500)
    assert world.awake()
    world.on_published = world._at_once
    await trio.sleep(5)
    assert not world.awake()


async def test_a_client_that_comes_while_it_ends_has_it_started_again(begin, autojump_clock) -> None:
    svc = spec()
    world = await begin(svc, launcher=FakeLauncher(Behaviour(stop_takes_s=5)))
    world.on_demand.wake(svc.service_id)
    await trio.sleep(62)
    assert world.on_demand.falling_asleep
    before = world.instance()
    world.on_demand.wake(svc.service_id)
    await trio.sleep(10)
    assert len(world.launcher.children) == 2
    assert (world.awake(), world.instance()) == (True, before)


async def test_a_stop_beats_a_wake_whichever_comes_first(begin, autojump_clock) -> None:
    svc = spec()
    world = await begin(svc, launcher=FakeLauncher(Behaviour(stop_takes_s=5)))

    async def stop() -> None:  # as `services.stop` does it
        await world.registry.want("svc", DesiredStatus.STOPPED)
        await world.supervisor.stop(svc.service_id)

    async with trio.open_nursery() as nursery:
        world.on_demand.wake(svc.service_id)
        nursery.start_soon(stop)
    world.on_demand.wake(svc.service_id)
    await trio.sleep(10)
    assert not world.awake()

    await world.registry.want("svc", DesiredStatus.RUNNING)
    world.on_demand.wake(svc.service_id)
    await trio.sleep(62)
    assert world.on_demand.falling_asleep  # its process is ending
    world.on_demand.wake(svc.service_id)
    await stop()
    await trio.sleep(10)
    assert (world.awake(), world.launcher.leases) == (False, set())


async def test_what_it_starts_after_is_woken_with_it_and_sleeps_after_it(begin, autojump_clock) -> None:
    base, top, always = spec("base"), spec("top", after=("base",)), spec("always", start=StartMode.ALWAYS)
    world = await begin(base, top, always)
    world.on_demand.wake(top.service_id)
    await trio.sleep(1)
    assert world.awake("base")
    assert world.awake("top")
    (of_top,) = world.supervisor.instances(top.service_id)
    world.connections.add(of_top.instance_id)
    await trio.sleep(500)
    assert world.awake("base")
    world.disconnect()
    await trio.sleep(61)
    assert (world.awake("top"), world.awake("base")) == (False, True)
    await trio.sleep(61)
    assert not world.awake("base")


async def test_a_stop_beats_the_start_of_what_it_starts_after(begin, autojump_clock) -> None:
    bases = [spec(name) for name in "abcdefgh"]  # so many that the stop comes while they are woken
    top = spec("top", after=tuple("abcdefgh"), start=StartMode.ALWAYS)
    world = await begin(*bases, top)

    async def start() -> None:  # as `services.start` does it
        with pytest.raises(WrongState, match="top was stopped meanwhile"):
            await world.supervisor.start(await world.on_demand.wake_needed(top))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await world.registry.want("top", DesiredStatus.STOPPED)
        await world.supervisor.stop(top.service_id)
    await trio.sleep(1)
    assert (world.awake("a"), world.awake("top")) == (True, False)


async def test_one_that_was_given_up_stays_so_until_an_operator_starts_it(begin, autojump_clock) -> None:
    failing = Behaviour(ready_after_s=1000, exits_after_s=1, exit=Exit(code=78))
    svc = spec()
    world = await begin(svc, launcher=FakeLauncher(failing, Behaviour()))
    with pytest.raises(ServiceFailedToStart):
        await world.on_demand.awake(svc, "an operator asks")
    world.on_demand.wake(svc.service_id)
    await trio.sleep(500)
    assert len(world.launcher.children) == 1
    assert not world.on_demand.is_asleep(svc)
    await world.supervisor.start(svc)
    assert world.awake()


async def test_a_command_that_has_ended_well_is_asleep(begin, autojump_clock) -> None:
    svc = spec(restart=RestartMode.ON_FAILURE)
    world = await begin(svc, launcher=FakeLauncher(Behaviour(exits_after_s=5), Behaviour()))
    await world.on_demand.awake(svc, "an operator asks")
    await trio.sleep(10)
    assert world.on_demand.is_asleep(svc)
    world.on_demand.wake(svc.service_id)
    await trio.sleep(1)
    assert world.awake()


async def test_a_turn_that_was_left_unfinished_wakes_it_when_the_manager_begins(
    begin, nursery, autojump_clock
) -> None:
    svc, other = spec(), spec("other")
    world = World(svc, other)
    world.unfinished = {svc.service_id}
    await nursery.start(world.run)
    await trio.sleep(1)
    assert (world.awake("svc"), world.awake("other")) == (True, False)


async def test_a_change_to_on_demand_counts_from_then_on_and_one_back_ends_it(begin, autojump_clock) -> None:
    svc = spec(start=StartMode.ALWAYS)
    world = await begin(svc)
    await world.supervisor.start(svc)
    await trio.sleep(500)
    changed = await world.registry.change_service("svc", {"start": "on-demand"})
    world.on_demand.look_again(changed)
    await trio.sleep(59)
    assert world.awake()
    world.on_demand.look_again(await world.registry.change_service("svc", {"start": "always"}))
    await trio.sleep(500)
    assert world.awake()
