"""What a supervisor does with instances that run on other machines, on trio's own clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import evolve

from agentmgr.core.restart import Cause, Exit
from agentmgr.errors import ServiceFailedToStart
from agentmgr.models import DesiredStatus, HealthStatus, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.testing.fake_launcher import Behaviour, FakeLauncher, FakeSlot

LOST = Exit(node_lost="node b was lost (silent for 15 s)")


def spec(name="svc", **config):
    return ServiceSpec(name, ServiceConfig(agent_factory_path="agent.py", **config))


async def test_an_instance_that_is_lost_with_its_node_starts_again_at_once(
    supervisor, recorder, autojump_clock
):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher) as s:
        await s.start(spec(max_restart_count=0))
        await trio.sleep(20)
        lost_at = trio.current_time()
        launcher.crash("svc", LOST)
        await recorder.until(lambda: len(launcher.children) == 2, 1)
        assert launcher.children[1].launched_at == lost_at
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING, 1)
        (instance,) = s.instances()
        assert (instance.restart_count, instance.restarts_left) == (1, 0)
        (end,) = recorder.ends
        assert (end.reason, end.exit, end.planned) == (LOST.node_lost, "lost with its node", False)


async def test_where_no_node_can_take_it_it_waits_and_says_for_what(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher()
    launcher.wait_for("a node with zone=b: none is linked")
    waits = "waits for a node with zone=b: none is linked"
    async with supervisor(launcher=launcher) as s:
        began = trio.current_time()
        service = spec(startup_timeout=30)
        with pytest.raises(ServiceFailedToStart) as caught:
            await s.start(service)
        assert str(caught.value) == f"service svc {waits}; it starts as soon as there is one"
        assert trio.current_time() - began == 30
        (instance,) = s.instances()
        assert (instance.status, instance.error_message) == (ServiceStatus.STARTING, waits)
        await trio.sleep(3600)
        launcher.wait_for("")
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING, 1)
        (instance,) = s.instances()
        assert (instance.error_message, instance.restart_count) == (None, 0)

        launcher.wait_for("a node: none is linked")
        launcher.crash("svc", LOST)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.STARTING, 1)
        began = trio.current_time()
        await s.stop(service.service_id)
        assert trio.current_time() == began, "a stop does not wait for a node"
    assert launcher.launches == 1


async def test_an_instance_that_cannot_be_asked_gets_no_verdict(supervisor, recorder, autojump_clock):
    launcher = FakeLauncher()
    async with supervisor(launcher=launcher, health_check_interval=10.0) as s:
        await s.start(spec())
        (child,) = launcher.children
        child.fall_silent("node b is silent")
        await trio.sleep(3600)
        (instance,) = s.instances()
        assert instance.status is ServiceStatus.RUNNING
        assert (instance.health, instance.error_message) == (HealthStatus.UNKNOWN, "node b is silent")
        assert recorder.checks == []
        await trio.sleep(1)
        child.fall_silent("")
        await trio.testing.wait_all_tasks_blocked()
        (instance,) = s.instances()
        assert (instance.health, instance.error_message) == (HealthStatus.HEALTHY, None)
        assert instance.restart_count == 0


async def test_no_startup_timeout_passes_while_nothing_is_heard_of_an_adopted_instance(
    supervisor, recorder, autojump_clock
):
    """Else a manager that starts while its nodes are cut off would start all of it a second time."""
    launcher = FakeLauncher()
    service = evolve(spec(startup_timeout=30), desired_status=DesiredStatus.RUNNING)
    async with supervisor(launcher=launcher) as s:
        await s.start(service)
        (record,) = recorder.records.values()
        await s.shutdown(leave_running=True)
    launcher.adopted = Behaviour(silent="waits for node b, which is lost", ready_after_s=3600)
    async with supervisor(launcher=launcher, adopt=[(service, [record])]) as s:
        await trio.sleep(3600 + 1)
        (instance,) = s.instances()
        assert (instance.status, instance.adopted) == (ServiceStatus.STARTING, True)
        assert instance.error_message == "waits for node b, which is lost"
        launcher.children[1].fall_silent("")
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING, 1)
        assert s.instances()[0].error_message is None

        launcher.children[1].die(LOST)
        launcher.behaviours = [Behaviour(silent="node b is silent", ready_after_s=7200)]
        await trio.sleep(100)
        assert s.instances()[0].status is ServiceStatus.STARTING
        launcher.children[2].fall_silent("")
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.BACKOFF, 40)
        assert "not ready within 30 s" in s.instances()[0].error_message

        launcher.behaviours = [Behaviour(ready_after_s=3600)]
        await recorder.until(lambda: len(launcher.children) == 4, 10)
        await trio.sleep(10)
        launcher.children[3].fall_silent("node b is silent")  # while it starts
        await trio.sleep(3580)
        launcher.children[3].fall_silent("")
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING, 30)


async def test_a_launch_whose_node_was_lost_is_tried_again_and_its_caller_waits_on(
    supervisor, recorder, autojump_clock
):
    launcher = FakeLauncher()
    launcher.refuse_next(cause=Cause.NODE_LOST, reason="node b was lost while svc was launched")
    async with supervisor(launcher=launcher) as s:
        await s.start(spec(max_restart_count=0))
        assert s.instances()[0].restart_count == 1


class TwoMachines(FakeLauncher):
    """Even positions are on one, odd ones on the other."""

    def __init__(self, *behaviours: Behaviour) -> None:
        super().__init__(*behaviours)
        self.permits = (trio.Semaphore(2), trio.Semaphore(2))

    def slot(self, spec, instance_id, position):
        slot = FakeSlot(self, spec, instance_id, position)

        async def place(waits):
            await trio.lowlevel.checkpoint()
            return self.permits[position % 2]

        slot.place = place
        return slot


async def test_each_machine_has_start_permits_of_its_own(supervisor, autojump_clock):
    launcher = TwoMachines(Behaviour(ready_after_s=4))
    async with supervisor(launcher=launcher) as s:
        began = trio.current_time()
        await s.start(spec(instances=8))
        launched = sorted(child.launched_at - began for child in launcher.children)
        assert launched == [0] * 4 + [4] * 4
