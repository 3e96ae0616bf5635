"""Commands that meet: one result, one process."""

import math
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmgr.core.restart import Exit
from agentmgr.errors import AgentManagerError, WrongState
from agentmgr.models import ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.supervisor import Supervisor
from agentmgr.testing.fake_launcher import Behaviour, FakeLauncher
from tests.faults.scenarios import commands_at_once
from tests.supervisor.conftest import MemoryJournal


async def test_random_commands_on_one_service(supervisor, journal, command, relatives, seed):
    async with supervisor() as s:
        await commands_at_once(s, journal, command, relatives, 5, Random(seed))


async def test_stop_while_it_starts_drains_or_is_replaced_is_prompt(supervisor, journal, hosted, seed):
    """At a random moment of its life; nothing is launched late."""
    random = Random(seed)
    async with supervisor() as s:
        for _ in range(6):
            spec = hosted("--ready-after", "0.1", stop_timeout=600)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_start_and_restart, s, spec)
                await trio.sleep(random.uniform(0, 0.6))
                begin = trio.current_time()
                await s.stop(spec.service_id, force=True)
                assert trio.current_time() - begin < 60
            assert s.instances(spec.service_id) == ()


async def _start_and_restart(s, spec):
    with pytest.raises(WrongState):
        await s.start(spec)
        for _ in range(20):
            await s.restart(spec)


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


@settings(max_examples=40, deadline=None)
@given(commands, st.lists(behaviours, min_size=1, max_size=4), st.integers(1, 3))
def test_any_schedule_of_commands_and_crashes_keeps_the_rules(
    tmp_path_factory, commands, behaviours, instances
):
    """At no time two processes in one slot but while one replaces the other, and none is ever lost."""
    launcher, journal = FakeLauncher(*behaviours), MemoryJournal()
    supervisor = Supervisor(
        journal, log_dir=tmp_path_factory.getbasetemp(), launcher=launcher, health_check_interval=50
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
            assert journal.records == {}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
