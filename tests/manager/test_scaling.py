"""A service with a range of instances: as many run as its load needs, and what drains is not cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from agentmgr.client.session import open_session
from agentmgr.core import scaling
from agentmgr.core.scaling import DOWN_AFTER_S, Turns
from agentmgr.manager import AgentManager
from agentmgr.manager.events import EventLog
from agentmgr.manager.registry import Registry
from agentmgr.manager.scaling import Scaler
from agentmgr.models import DesiredStatus, Instance, ServiceConfig, ServiceSpec
from agentmgr.supervisor import NullRecorder, Supervisor
from agentmgr.testing import Behaviour, FakeLauncher, MemoryStore
from agentmgr.testing.fake_launcher import FakeChild
from tests.conditions import until

AGENT = ServiceConfig(agent_factory_path="agent.py", instances="1..4", max_sessions=10, drain_timeout=30)


class World(NullRecorder):
    """A scaler, a supervisor of fake processes, and connections as the test sets them."""

    def __init__(self, launcher: FakeLauncher, spec: ServiceSpec) -> None:
        self.launcher, self.spec, self.store = launcher, spec, MemoryStore()
        self.taken, self.waiting = Counter[str](), 0
        self.registry = Registry(self.store, [spec], ())
        self.supervisor = Supervisor(self, log_dir="unused", launcher=launcher)
        self.scaler = Scaler(
            self.registry,
            self.supervisor,
            EventLog(self.store),
            taken=lambda: self.taken,
            waiting=lambda _: self.waiting,
        )

    def instance_changed(self, instance: Instance) -> None:
        self.scaler.load_changed(instance.service_id)

    async def drain(self, instance_id: str, timeout_s: float, *, for_good: bool) -> None:
        del self.taken[instance_id]  # durable sessions that are idle go on elsewhere at once

    def spread(self, connections: int) -> None:
        """So many connections, evenly over the instances that serve."""
        serving = [i.instance_id for i in self.instances if i.status == "running"]
        self.taken = Counter({name: connections // len(serving) for name in serving})
        self.taken[serving[0]] += connections % len(serving)
        self.scaler.load_changed(self.spec.service_id)

    @property
    def instances(self) -> tuple[Instance, ...]:
        return self.supervisor.instances(self.spec.service_id)

    @property
    def statuses(self) -> list[tuple[int, str]]:
        return [(i.slot, str(i.status)) for i in self.instances]

    async def changes(self) -> list[tuple[Any, Any]]:
        events = await self.store.events()
        return [(e.detail["from"], e.detail["to"]) for e in events if e.kind == "service.scaled"]


@asynccontextmanager
async def world(config: ServiceConfig = AGENT, launcher: FakeLauncher | None = None) -> AsyncIterator[World]:
    spec = ServiceSpec("web", config, desired_status=DesiredStatus.RUNNING)
    it = World(launcher or FakeLauncher(Behaviour(conversation_takes_s=0)), spec)
    async with trio.open_nursery() as nursery:
        await it.store.add_service(spec)
        await nursery.start(it.supervisor.run)
        nursery.start_soon(it.scaler.run)
        await it.supervisor.start(spec)
        yield it
        await it.supervisor.shutdown(force=True)
        nursery.cancel_scope.cancel()


async def test_more_run_at_once_and_fewer_after_two_minutes(autojump_clock: object) -> None:
    async with world() as it:
        it.spread(8)
        await trio.sleep(0.1)
        assert it.statuses == [(0, "running"), (1, "running")]
        it.spread(9)
        it.waiting = 30
        it.scaler.look_now()
        await trio.sleep(0.1)
        assert len(it.statuses) == 4
        it.waiting = 0
        it.spread(3)
        it.taken = Counter({it.instances[2].instance_id: 3})
        await trio.sleep(DOWN_AFTER_S - 1)
        assert len(it.statuses) == 4
        await trio.sleep(3)
        assert it.statuses == [(2, "running")]
        assert await it.changes() == [(1, 2), (2, 4), (4, 1)]
        it.taken[it.instances[0].instance_id] = 8
        await trio.sleep(2)
        assert it.statuses == [(0, "running"), (2, "running")]


async def test_turns_are_what_counts_where_nothing_else_is_said(autojump_clock: object) -> None:
    async with world(evolve(AGENT, max_sessions=0)) as it:
        it.spread(50)
        it.waiting = 90  # without a limit they wait for the first instance alone
        it.launcher.children[0].work = Turns(9, asking=5)
        await trio.sleep(5)
        assert len(it.statuses) == 1
        it.launcher.children[0].work = Turns(9, asking=4)
        await trio.sleep(2.5)
        assert len(it.statuses) == 2
        it.launcher.children[1].work = None
        await trio.sleep(2.5)
        assert len(it.statuses) == 2  # it has no client, and so is not asked
        it.taken[it.instances[1].instance_id] = 1  # it cannot tell: connections are counted
        await trio.sleep(2.5)
        assert len(it.statuses) == 4


async def test_an_instance_that_drains_has_the_time_that_its_turns_take(autojump_clock: object) -> None:
    launcher = FakeLauncher(Behaviour(conversation_takes_s=0), Behaviour(conversation_takes_s=5000))
    async with world(launcher=launcher) as it:
        it.spread(8)
        await trio.sleep(1)
        it.taken = Counter({it.instances[0].instance_id: 7})
        await trio.sleep(DOWN_AFTER_S + 4000)
        assert it.statuses == [(0, "running"), (1, "draining")]
        it.spread(8)  # another one starts beside it; it is not waited for
        await trio.sleep(1)
        assert it.statuses == [(0, "running"), (1, "draining"), (2, "running")]
        with trio.fail_after(1):
            await it.supervisor.start(it.spec)
        assert it.statuses == [(0, "running"), (1, "draining"), (2, "running")]
        began = trio.current_time()
        await it.supervisor.stop(it.spec.service_id)  # from here on the drain timeout holds
        assert 0 < trio.current_time() - began <= 30 + 15
        assert await it.changes() == [(1, 2), (2, 1), (1, 2)]


async def test_there_is_never_one_more_than_the_most_that_which_drains_included(
    autojump_clock: object,
) -> None:
    launcher = FakeLauncher(Behaviour(conversation_takes_s=600))
    async with world(evolve(AGENT, instances="1..2"), launcher) as it:
        it.spread(9)
        await trio.sleep(1)
        it.taken.clear()
        await trio.sleep(DOWN_AFTER_S + 10)
        it.spread(20)
        await trio.sleep(100)
        assert [status for _, status in it.statuses] == ["running", "draining"]
        assert len(launcher.running) == 2
        await trio.sleep(600)
        assert [status for _, status in it.statuses] == ["running", "running"]


async def test_what_is_given_up_is_not_tried_at_each_position(autojump_clock: object) -> None:
    fails = Behaviour(exits_after_s=1, ready_after_s=10)
    config = evolve(AGENT, max_restart_count=1, restart_delay=1)
    async with world(config, FakeLauncher(Behaviour(conversation_takes_s=0), fails)) as it:
        it.spread(8)
        await trio.sleep(60)
        assert it.statuses == [(0, "running"), (1, "error")]
        it.taken = Counter({it.instances[0].instance_id: 7})
        await trio.sleep(DOWN_AFTER_S + 5)
        assert it.statuses == [(0, "running")]


async def test_a_stop_beats_the_load_and_a_restart_keeps_the_number(autojump_clock: object) -> None:
    async with world() as it:
        it.spread(20)
        await trio.sleep(1)
        await it.supervisor.restart(it.spec)
        assert len(it.statuses) == 3
        assert len(it.launcher.children) == 6
        await it.supervisor.restart(it.spec, rolling=False)
        assert len(it.statuses) == 3
        it.spread(20)
        await it.registry.want("web", DesiredStatus.STOPPED)
        await it.supervisor.stop(it.spec.service_id)
        it.waiting = 9
        it.scaler.load_changed(it.spec.service_id)
        await trio.sleep(5)
        assert it.statuses == []
        assert await it.changes() == [(1, 3)]


async def test_what_starts_during_a_rolling_restart_stays(autojump_clock: object) -> None:
    launcher = FakeLauncher(Behaviour(ready_after_s=5, conversation_takes_s=0))
    async with world(launcher=launcher) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.supervisor.restart, it.spec)
        await trio.sleep(1)
        it.spread(20)
        await trio.sleep(1)
        more = {i.instance_id for i in it.instances if i.slot in (1, 2)}
        assert len(more) == 2
        await trio.sleep(30)
        assert it.statuses == [(0, "running"), (1, "running"), (2, "running")]
        assert more < {i.instance_id for i in it.instances}


async def test_a_next_manager_goes_on_with_the_number_that_runs(autojump_clock: object) -> None:
    async with world() as it:
        it.spread(20)
        await trio.sleep(1)
        records = [child.record for child in it.launcher.running]
        await it.supervisor.shutdown(leave_running=True)
    following = World(FakeLauncher(Behaviour(conversation_takes_s=0)), it.spec)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(following.supervisor.run, adopt=[(it.spec, records)]))
        nursery.start_soon(following.scaler.run)
        await following.supervisor.start(it.spec)
        assert len(following.launcher.children) == 3  # adopted, and none started or ended
        await trio.sleep(DOWN_AFTER_S - 2)
        assert len(following.statuses) == 3
        await trio.sleep(5)
        assert following.statuses == [(0, "running")]
        await following.supervisor.shutdown(force=True)
        nursery.cancel_scope.cancel()


async def test_one_that_drained_when_its_manager_was_killed_drains_on(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as it:
        it.spread(20)
        await trio.sleep(1)
        records = [child.record for child in it.launcher.running]
        await it.supervisor.shutdown(leave_running=True)

    async def is_draining(child: FakeChild) -> bool:
        return child.record.slot == 1

    monkeypatch.setattr(FakeChild, "is_draining", is_draining)
    following = World(FakeLauncher(), it.spec)
    following.launcher.adopted = Behaviour(conversation_takes_s=600)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(following.supervisor.run, adopt=[(it.spec, records)]))
        await following.supervisor.start(it.spec)
        await trio.sleep(300)
        assert following.statuses == [(0, "running"), (1, "draining"), (2, "running")]
        assert len(following.launcher.children) == 3
        await trio.sleep(301)
        assert following.statuses == [(0, "running"), (2, "running")]
        await following.supervisor.shutdown(force=True)
        nursery.cancel_scope.cancel()


THINKS = """
import os
from pathlib import Path
import trio

HERE = Path(__file__).parent

def create_agent():
    async def answer(message):
        HERE.joinpath(f"began-{message}").touch()
        while not HERE.joinpath("go-on").exists():
            await trio.sleep(0.01)
        return str(os.getpid())
    return answer
"""


def scaled(events: Collection[Any]) -> list[tuple[Any, Any, Any]]:
    return [
        (e.detail["from"], e.detail["to"], e.detail["reason"]) for e in events if e.kind == "service.scaled"
    ]


@pytest.mark.parametrize("workers", [0, 1])
async def test_behind_the_gateway_instances_come_with_clients_and_go_without_cutting_a_turn(
    db: Path,
    agent_file: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    monkeypatch.setattr(scaling, "DOWN_AFTER_S", 0.5)
    config = ServiceConfig(
        agent_factory_path=agent_file(THINKS), instances="1..3", max_sessions=1, drain_timeout=0.2
    )
    async with (
        AgentManager(db) as manager,
        trio.open_nursery() as nursery,
        AsyncExitStack() as clients,
    ):
        await manager.register_service("web", config=config, auto_start=True)
        port = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=workers or None))
        url = f"ws://localhost:{port}/services/web"

        async def client(number: int) -> Any:
            session = await clients.enter_async_context(open_session(url))
            turn = await session.send(str(number))
            await until(lambda: (tmp_path / f"began-{number}").exists())
            return turn

        def running() -> list[int]:
            return [i.slot for i in manager.get_service("web").instances if i.status == "running"]

        turns = [await client(number) for number in range(3)]
        await until(lambda: len(running()) == 3)
        # Each has an instance for its turn; two of them are not needed any more.
        plane = manager._live()
        await plane.registry.change_service("web", {"sessions_per_instance": 3})
        await until(lambda: len(running()) == 1)
        await trio.sleep(0.5)  # longer than the drain timeout
        statuses = sorted(str(i.status) for i in manager.get_service("web").instances)
        assert statuses == ["draining", "draining", "running"]
        (tmp_path / "go-on").touch()
        with trio.fail_after(30):
            assert len({await turn.answer() for turn in turns}) == 3
        await until(lambda: len(manager.get_service("web").instances) == 1)
        found = scaled(await manager.get_events())
        assert [(before, after) for before, after, _ in found] == [(1, 2), (2, 3), (3, 1)]
        assert found[0][2] == "1 connection, 1 client waits, and one instance takes 1"
        assert found[2][2] == "3 connections; for 0.5 s no more were needed"
        service = manager.get_service("web")
        assert (service.wanted_instances, service.config.instances) == (1, "1..3")
        nursery.cancel_scope.cancel()
