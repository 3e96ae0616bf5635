"""Instances that end unasked."""

import os
import signal
from random import Random

import pytest

from agentmgr.errors import ServiceFailedToStart
from agentmgr.models import ServiceStatus
from tests.faults.scenarios import kill_instances


async def test_kill_9_of_instances_at_random(supervisor, recorder, command, hosted, seed):
    async with supervisor() as s:
        await kill_instances(s, recorder, [command, hosted], 6, Random(seed))


async def test_a_service_that_exits_with_0_at_once_is_given_up(supervisor, recorder, command):
    async with supervisor() as s:
        spec = command("--never-listen", "--exit-after", "0")
        with pytest.raises(ServiceFailedToStart, match="before it was ready: exit code 0"):
            await s.start(spec)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.ERROR)
        assert recorder.statuses().count("starting") == 4  # three restarts, as `max_restart_count` says
        assert s.instances()[0].last_exit == "exit code 0"


async def test_a_service_that_ends_well_is_left_so(supervisor, recorder, command):
    async with supervisor() as s:
        await s.start(command())
        os.kill(s.instances()[0].pid, signal.SIGUSR1)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.STOPPED)
        assert recorder.statuses() == ["starting", "running", "stopped"]


async def test_a_service_that_crashes_just_after_it_is_ready_is_given_up(supervisor, recorder, command):
    async with supervisor() as s:
        await s.start(command("--exit-code", "5", restart_delay=0.01))
        for launch in range(1, 5):
            await recorder.until(lambda: recorder.statuses().count("running") == launch)  # noqa: B023
            os.kill(s.instances()[0].pid, signal.SIGUSR1)
        await recorder.until(lambda: s.instances()[0].status is not ServiceStatus.RUNNING)
        (instance,) = s.instances()
        assert (instance.status, instance.restart_count) == (ServiceStatus.ERROR, 3)
        assert "given up after 3 restarts within 300 s" in instance.error_message
        assert recorder.statuses().count("running") == 4
