"""The faults of a fake launcher are those that a supervisor knows from processes."""

import trio

from agentmgr import HealthStatus, ServiceConfig, ServiceSpec, ServiceStatus, Supervisor
from agentmgr.testing import Behaviour, Cause, Exit, FakeLauncher


def service(name="svc", **config):
    return ServiceSpec(name, ServiceConfig(command=["program"], **config))


async def test_a_crash_is_one_of_that_service_only(autojump_clock):
    launcher = FakeLauncher()
    async with Supervisor(launcher=launcher) as supervisor:
        for name in ("one", "other"):
            await supervisor.start(service(name, instances=2))
        launcher.crash("one", Exit(code=3))
        await trio.sleep(60)
        assert [instance.restart_count for instance in supervisor.instances()] == [1, 1, 0, 0]
        assert launcher.launches == 6


async def test_what_hangs_is_found_out_and_killed(autojump_clock):
    launcher = FakeLauncher()
    async with Supervisor(launcher=launcher, health_check_interval=10) as supervisor:
        await supervisor.start(service(stop_timeout=5))
        [child] = launcher.running
        launcher.hang("svc")
        await trio.sleep(300)
        assert await child.end(0) == Exit(signal=9)
        (instance,) = supervisor.instances()
        assert (instance.status, instance.health) == (ServiceStatus.RUNNING, HealthStatus.HEALTHY)


async def test_refusals_come_before_the_behaviours_and_end(autojump_clock):
    launcher = FakeLauncher(Behaviour(last_words="the first that runs"))
    launcher.refuse_next(2, reason="no memory to be had")
    async with Supervisor(launcher=launcher) as supervisor:
        await supervisor.start(service(), wait=False)
        await trio.testing.wait_all_tasks_blocked()
        assert "no memory" in supervisor.instances()[0].error_message
        await trio.sleep(60)
        [child] = launcher.running
        assert child.last_words() == "the first that runs"


async def test_a_refusal_that_cannot_get_better_gives_up_at_once(autojump_clock):
    launcher = FakeLauncher()
    launcher.refuse_next(cause=Cause.CANNOT_EXECUTE)
    async with Supervisor(launcher=launcher) as supervisor:
        await supervisor.start(service(), wait=False)
        await trio.sleep(3600)
        assert supervisor.instances()[0].status is ServiceStatus.ERROR
        assert not launcher.children
