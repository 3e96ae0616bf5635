"""Commands that meet: one result, one process."""

import math
import os
import signal
import sys
from contextlib import suppress
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from agentmgr.core.restart import Exit
from agentmgr.errors import AgentManagerError
from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.storage import open_store
from agentmgr.supervisor import Supervisor
from agentmgr.testing.fake_launcher import Behaviour, FakeLauncher
from tests.faults.managers import instances_of
from tests.faults.scenarios import commands_at_once
from tests.supervisor.conftest import CHILD, MemoryRecorder


async def test_random_commands_on_one_service(supervisor, recorder, command, descendants, seed):
    async with supervisor() as s:
        await commands_at_once(s, recorder, command, descendants, 6, Random(seed))


MOMENTS = {  # the statuses of what runs, in the order of their starts
    "starts": ["starting"],
    "is in backoff": ["backoff"],
    "drains": ["draining"],
    "is replaced": ["running", "starting"],
    "has been replaced": ["stopping", "running"],
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_stop_is_prompt_at_any_moment_and_nothing_is_launched_late(
    supervisor, recorder, command, descendants, moment
):
    async def never(_instance_id):
        await trio.sleep_forever()

    def statuses():
        return [view.status for view in s.instances() if view.pid is not None or view.status == "backoff"]

    def launched():
        return {view.pid for view in recorder.history}

    async with supervisor() as s, trio.open_nursery() as nursery:
        starting = ("--never-listen",) if moment == "starts" else ("--term-takes", "0.3")
        limits = {"startup_timeout": 20, "drain_timeout": 5, "stop_timeout": 5, "restart_delay": 30}
        spec = command(*starting, **limits)
        nursery.start_soon(_until_stopped, s.start, spec)
        if moment != "starts":
            await recorder.until(lambda: statuses() == ["running"])
        if moment == "is in backoff":
            os.kill(s.instances()[0].pid, signal.SIGKILL)
        elif moment == "drains":
            recorder.draining = never
            nursery.start_soon(s.stop, spec.service_id)
        elif moment != "starts":
            nursery.start_soon(_until_stopped, s.restart, spec)
        await recorder.until(lambda: statuses() == MOMENTS[moment])
        before = launched()
        with trio.fail_after(60):
            await s.stop(spec.service_id, force=True)
        assert s.instances() == ()
        await trio.testing.wait_all_tasks_blocked()
        assert descendants() == []
        assert launched() == before


async def _until_stopped(command, spec):
    with suppress(AgentManagerError):
        await command(spec)


async def test_an_unregistration_wins_over_all_that_meets_it(tmp_path):
    """With all of the manager, and a real process."""
    command = (sys.executable, "-S", str(CHILD), "--port", "{port}")
    async with AgentManager(tmp_path / "manager.db") as manager:
        await manager.register_service("echo", command=command, auto_start=True)
        commands = [
            manager.restart_service,
            manager.start_service,
            manager.unregister_service,
            manager.start_service,
            manager.stop_service,
            manager.restart_service,
        ]
        async with trio.open_nursery() as nursery:
            for command in commands:
                nursery.start_soon(_until_stopped, command, "echo")
                await trio.testing.wait_all_tasks_blocked()
        assert manager.list_services() == []
        assert instances_of(tmp_path / "manager.db") == {}
    async with open_store(tmp_path / "manager.db", read_only=True) as store:
        snapshot = await store.load()
    assert (snapshot.services, snapshot.instances) == ((), ())


commands = st.lists(
    st.tuples(
        st.sampled_from(["start", "stop", "force", "restart", "not rolling", "scale", "die", "hang"]),
        st.floats(0, 40),
    ),
    max_size=12,
)
behaviours = st.builds(
    Behaviour,
    ready_after_s=st.sampled_from([0.0, 3.0, 100.0]),
    exits_after_s=st.sampled_from([math.inf, 1.0, 70.0]),
    exit=st.sampled_from([Exit(code=0), Exit(code=1), Exit(signal=9), Exit(code=78)]),
    stop_takes_s=st.sampled_from([0.0, 2.0, 50.0]),
)


@settings(max_examples=40, deadline=None, phases=set(Phase) - {Phase.explain})
@given(commands, st.lists(behaviours, min_size=1, max_size=4), st.integers(1, 3))
@example([("start", 9), ("restart", 0), ("restart", 0), ("restart", 3)], [Behaviour(ready_after_s=3)], 1)
@example([("start", 9), ("restart", 0), ("restart", 0), ("stop", 3)], [Behaviour(stop_takes_s=50)], 3)
def test_any_schedule_of_commands_and_crashes_keeps_the_rules(
    tmp_path_factory, commands, behaviours, instances
):
    """At no time two processes in one slot but while one replaces the other, and none is ever lost."""
    launcher, recorder = FakeLauncher(*behaviours), MemoryRecorder()
    supervisor = Supervisor(
        recorder, log_dir=tmp_path_factory.getbasetemp(), launcher=launcher, health_check_interval=50
    )
    service = ServiceSpec("svc", ServiceConfig(agent_factory_path="agent.py", instances=instances))

    async def give(command):
        try:
            if command == "start":
                await supervisor.start(service)
            elif command in ("stop", "force"):
                await supervisor.stop(service.service_id, force=command == "force")
            elif command in ("restart", "not rolling"):
                await supervisor.restart(service, rolling=command == "restart")
            elif command == "scale":
                config = ServiceConfig(agent_factory_path="agent.py", instances=instances % 3 + 1)
                await supervisor.start(service.changed(config=config))
            elif launcher.running:
                launcher.running[0].die(Exit(signal=9))
        except AgentManagerError:
            pass

    def check():
        slots = [child.record.slot for child in launcher.running]
        assert all(slots.count(slot) <= 2 for slot in slots)
        known = {view.pid for view in supervisor.instances() if view.pid is not None}
        assert known <= {child.record.pid for child in launcher.running} | {None}

    async def main():
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            for command, pause in commands:
                nursery.start_soon(give, command)
                await trio.sleep(pause)
                await trio.testing.wait_all_tasks_blocked()  # what ends now is known as ended
                check()
            await trio.testing.wait_all_tasks_blocked()  # all have been heard
            await supervisor.stop(service.service_id)
            assert launcher.running == []
            assert supervisor.instances() == ()
            before = launcher.launches
            await trio.sleep(300)
            assert launcher.launches == before
            await supervisor.start(service, wait=False)
            await trio.sleep(300)
            views = supervisor.instances()
            assert [view.slot for view in views] == list(range(instances))
            running = sum(view.pid is not None for view in views)
            assert len(launcher.running) == running
            assert all(
                view.pid is not None
                for view in views
                if view.status in (ServiceStatus.RUNNING, ServiceStatus.UNHEALTHY)
            )
            await supervisor.shutdown()
            assert launcher.running == []
            assert recorder.records == {}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
