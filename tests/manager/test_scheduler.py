"""Schedules on a clock that the test has: what is due begins, once, whatever managers and clocks do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import trio
from attrs import evolve

from agentmgr.core.restart import Cause, Exit
from agentmgr.errors import StorageError, WrongState
from agentmgr.manager.events import EventLog
from agentmgr.manager.jobs import Jobs
from agentmgr.manager.registry import Registry
from agentmgr.manager.scheduler import Scheduler
from agentmgr.models import DesiredStatus, Instance, JobRun, Overlap, RunResult, ServiceConfig, ServiceSpec
from agentmgr.supervisor import NullRecorder, Supervisor
from agentmgr.testing import Behaviour, FakeLauncher, MemoryStore

BEGIN = datetime(2026, 6, 1, tzinfo=UTC)
M = 60.0
RUNS_5_MIN = Behaviour(exits_after_s=5 * M)


class World:
    """A store and a clock that outlive managers."""

    def __init__(self, launcher: FakeLauncher) -> None:
        self.store, self.launcher, self.ahead_s = MemoryStore(), launcher, 0.0
        self.began = trio.current_time()

    def now(self) -> datetime:
        return BEGIN + timedelta(seconds=trio.current_time() - self.began + self.ahead_s)

    def launches(self) -> list[float]:
        """In minutes since the beginning, by the clock that is never set."""
        return [round((child.launched_at - self.began) / M) for child in self.launcher.children]

    @asynccontextmanager
    async def manager(self, *, leave_running: bool = False) -> AsyncIterator["Manager"]:
        snapshot = await self.store.load()
        manager = Manager(self, snapshot)
        async with trio.open_nursery() as nursery:
            adopt = [(spec, manager.records(snapshot, spec)) for spec in snapshot.services]
            run = partial(manager.supervisor.run, adopt=adopt, completed=manager.jobs.completed())
            await nursery.start(run)
            manager.jobs.find_lost(snapshot.instances)
            nursery.start_soon(manager.jobs.run)
            nursery.start_soon(manager.scheduler.run)
            yield manager
            await manager.supervisor.shutdown(force=True, leave_running=leave_running)
            await manager.jobs.written()
            nursery.cancel_scope.cancel()


class Manager(NullRecorder):
    def __init__(self, world: World, snapshot: Any) -> None:
        self.store = world.store
        self.registry = Registry(world.store, snapshot.services, ())
        self.supervisor = Supervisor(self, log_dir="unused", launcher=world.launcher)
        self.jobs = Jobs(world.store, self.registry, self.supervisor, snapshot.jobs, now=world.now)
        events = EventLog(world.store)
        self.scheduler = Scheduler(self.registry, self.supervisor, self.jobs, events, now=world.now)

    @staticmethod
    def records(snapshot: Any, spec: ServiceSpec) -> list[Any]:
        return [record for record in snapshot.instances if record.service_id == spec.service_id]

    async def instance_spawned(self, record: Any) -> None:
        await self.store.put_instance(record)
        self.jobs.launched(record)
        await self.jobs.written()

    async def instance_gone(self, instance_id: str) -> None:
        await self.jobs.written()
        await self.store.delete_instance(instance_id)

    def instance_changed(self, instance: Instance) -> None:
        self.jobs.instance_changed(instance)

    async def register(self, schedule: str = "0 * * * *", **config: Any) -> ServiceSpec:
        command = ("/bin/true",)
        options = ServiceConfig(command=command, schedule=schedule, timezone="UTC", restart_delay=0, **config)
        spec = ServiceSpec("job", options, desired_status=DesiredStatus.RUNNING)
        await self.registry.add_service(spec)
        self.scheduler.look_again()
        return spec

    def last(self, spec: ServiceSpec) -> JobRun:
        last = self.jobs.state(spec.service_id).last
        assert last is not None
        return last


async def kinds(world: World) -> list[str]:
    return [event.kind for event in await world.store.events() if event.kind.startswith("job.")]


async def test_it_runs_at_each_moment_and_never_before(autojump_clock: Any) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        spec = await manager.register()
        assert manager.scheduler.next_run(spec) == BEGIN + timedelta(hours=1)
        await trio.sleep(190 * M)
        assert world.launches() == [60, 120, 180]
        last = manager.last(spec)
        assert (last.result, last.due_at) == (RunResult.COMPLETED, BEGIN + timedelta(hours=3))
        assert last.ended_at is not None
        assert round((last.ended_at - last.began_at).total_seconds()) == 300


async def test_a_run_that_fails_is_tried_again_as_its_policy_says_and_the_next_one_comes(
    autojump_clock: Any,
) -> None:
    failing = Behaviour(exits_after_s=M, exit=Exit(code=3))
    world = World(FakeLauncher(failing, failing, RUNS_5_MIN))
    async with world.manager() as manager:
        spec = await manager.register(max_restart_count=1, stable_after=1000)
        await trio.sleep(70 * M)
        assert world.launches() == [60, 61]
        last = manager.last(spec)
        assert last.result is RunResult.FAILED
        assert "exit code 3" in str(last.reason)
        await trio.sleep(60 * M)
        assert manager.last(spec).result is RunResult.COMPLETED


@pytest.mark.parametrize(
    ("overlap", "launches", "events"),
    [
        ("skip", [10, 40, 70], ["job.skipped"] * 4),
        ("queue", [10, 34, 58], ["job.skipped"] * 3),
        ("kill", [10, 20, 30, 40, 50, 60, 70], []),
    ],
)
async def test_what_a_run_does_that_finds_another_one(
    autojump_clock: Any, overlap: str, launches: list[float], events: list[str]
) -> None:
    world = World(FakeLauncher(Behaviour(exits_after_s=24 * M)))
    async with world.manager() as manager:
        spec = await manager.register("*/10 * * * *", overlap=Overlap(overlap))
        await trio.sleep(31 * M)
        assert manager.last(spec).skipped == events[:2].count("job.skipped") - (overlap == "queue")
        await trio.sleep(44 * M)
        assert world.launches() == launches
        assert len(world.launcher.running) == 1
        assert await kinds(world) == events


async def test_the_next_manager_repeats_nothing_and_passes_over_what_was_missed(autojump_clock: Any) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        await manager.register()
        await trio.sleep(70 * M)
    await trio.sleep(150 * M)
    async with world.manager() as manager:
        await trio.sleep(25 * M)
    assert world.launches() == [60, 240]
    assert await kinds(world) == ["job.missed"]


async def test_missed_runs_are_made_up_for_once(autojump_clock: Any) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        await manager.register(catch_up=True)
        await trio.sleep(70 * M)
    await trio.sleep(150 * M)
    async with world.manager() as manager:
        await trio.sleep(25 * M)
    assert world.launches() == [60, 220, 240]


@pytest.mark.parametrize("catch_up", [False, True])
async def test_a_run_that_was_ended_with_its_manager(autojump_clock: Any, catch_up: bool) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        spec = await manager.register(catch_up=catch_up)
        await trio.sleep(62 * M)
    async with world.manager() as manager:
        await trio.sleep(10 * M)
        assert world.launches() == [60, 62] if catch_up else [60]
        assert manager.last(spec).result is (RunResult.COMPLETED if catch_up else RunResult.INTERRUPTED)


async def test_a_run_that_goes_on_without_a_manager_is_adopted_and_not_doubled(autojump_clock: Any) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager(leave_running=True) as manager:
        spec = await manager.register(catch_up=True)
        await trio.sleep(62 * M)
    async with world.manager() as manager:
        await trio.sleep(1)
        assert manager.last(spec).result is None
        world.launcher.crash("job", Exit())
        await trio.sleep(M)
        assert manager.last(spec).result is RunResult.UNKNOWN
    assert world.launches() == [60, 62]  # the second one is the same, adopted


async def test_a_run_that_was_written_down_and_not_launched_is_launched_by_the_next_manager(
    autojump_clock: Any,
) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        spec = await manager.register()
        await trio.sleep(10 * M)
    state = (await world.store.load()).jobs[spec.service_id]
    await world.store.put_job(spec.service_id, evolve(state, last=JobRun(world.now(), world.now())))
    async with world.manager() as manager:
        await trio.sleep(10 * M)
        assert world.launches() == [10]
        assert manager.last(spec).result is RunResult.COMPLETED


async def test_a_clock_that_is_set(autojump_clock: Any) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        await manager.register()
        await trio.sleep(70 * M)
        world.ahead_s = 3000 * M  # 51:10: many were missed, one runs
        await trio.sleep(10 * M)
        assert world.launches() == [60, 70]
        world.ahead_s -= 2 * 60 * M  # 49:20: those until 51:10 were handled
        await trio.sleep(165 * M)
        assert world.launches() == [60, 70, 240]
        world.ahead_s = 0  # it was wrong before: 4:05
        await trio.sleep(60 * M)
        assert world.launches() == [60, 70, 240, 300]


async def test_a_stop_ends_the_schedule_and_a_start_begins_it_anew(autojump_clock: Any) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        spec = await manager.register(catch_up=True)
        await trio.sleep(62 * M)
        spec = await manager.registry.want("job", DesiredStatus.STOPPED)
        manager.scheduler.stop(spec.service_id)
        await manager.supervisor.stop(spec.service_id)
        assert manager.last(spec).result is RunResult.STOPPED
        assert manager.scheduler.next_run(spec) is None
        await trio.sleep(180 * M)
        await manager.registry.want("job", DesiredStatus.RUNNING)
        manager.scheduler.look_again()
        await trio.sleep(60 * M)
        assert world.launches() == [60, 300]


async def test_a_run_that_is_asked_for_is_one_besides(autojump_clock: Any) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        spec = await manager.register()
        await trio.sleep(10 * M)
        manager.scheduler.run_now(spec)
        await trio.sleep(M)
        with pytest.raises(WrongState, match="runs already"):
            manager.scheduler.run_now(spec)
        await trio.sleep(60 * M)
        assert world.launches() == [10, 60]
        plain = ServiceSpec("plain", ServiceConfig(command=("/bin/true",)))
        with pytest.raises(WrongState, match="has no schedule"):
            manager.scheduler.run_now(plain)


async def test_a_full_disk_keeps_no_run_from_running(autojump_clock: Any) -> None:
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        spec = await manager.register()
        world.store.failure = StorageError("the disk is full")
        await trio.sleep(130 * M)
        assert world.launches() == [60, 120]
        world.store.failure = None
        await trio.sleep(M)
        assert (await world.store.load()).jobs[spec.service_id] == manager.jobs.state(spec.service_id)


@pytest.mark.parametrize("launched", [True, False])
async def test_a_run_that_was_lost_with_its_node_is_not_repeated_and_the_next_one_comes(
    autojump_clock: Any, launched: bool
) -> None:
    reason = "node b was lost (silent for 15 s)"
    world = World(FakeLauncher(RUNS_5_MIN))
    async with world.manager() as manager:
        spec = await manager.register()
        if not launched:
            world.launcher.refuse_next(cause=Cause.NODE_LOST, reason=reason)
        await trio.sleep(62 * M)
        world.launcher.crash("job", Exit(node_lost=reason))
        await trio.sleep(M)
        last = manager.last(spec)
        assert last.result is RunResult.UNKNOWN
        assert last.reason == f"{reason}; what it had done is not known, so it is not repeated"
        await trio.sleep(70 * M)
        assert world.launches() == ([60, 120] if launched else [120])
        assert manager.last(spec).result is RunResult.COMPLETED
