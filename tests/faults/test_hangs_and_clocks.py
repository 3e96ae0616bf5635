"""What hangs, and clocks that do what clocks should not."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta

import pytest
import trio

from agentmgr.errors import ServiceFailedToStart
from agentmgr.models import ServiceStatus, utc_now
from tests.faults.test_stubborn_processes import eventually
from tests.supervisor.conftest import CHILD


async def test_never_ready_ends_at_the_startup_deadline(supervisor, command, descendants):
    async with supervisor() as s:
        with trio.fail_after(20), pytest.raises(ServiceFailedToStart, match=r"not ready within 0\.3 s"):
            await s.start(command("--never-listen", startup_timeout=0.3, restart="never"))
        assert s.instances()[0].status is ServiceStatus.ERROR
        await eventually(lambda: descendants() == [])  # told first, cleared away afterwards


async def test_ready_and_then_hung_is_restarted_and_the_sibling_not(supervisor, recorder, command):
    limits = {"health_check_timeout": 0.2, "recovery_threshold": 0.2, "stop_timeout": 0.1}
    async with supervisor(health_check_interval=0.1) as s:
        await s.start(command(name="sibling"))
        spec = command(**limits)
        await s.start(spec)
        (hung,) = s.instances(spec.service_id)
        os.kill(hung.pid, signal.SIGUSR2)
        await recorder.until(lambda: s.instances(spec.service_id)[0].pid not in (hung.pid, None))
        assert s.instances()[0].restart_count == 0
        # Long before its backlog is full: to be connected is no answer.
        assert sum(check.instance_id == hung.instance_id for check in recorder.checks) < 50
        found = recorder.statuses(hung.instance_id)
        assert found[:2] == ["starting", "running"]
        assert found[found.index("backoff") - 1] == "unhealthy"


async def test_a_suspended_instance_is_unhealthy_and_well_again_when_it_goes_on(
    supervisor, recorder, command
):
    async with supervisor(health_check_interval=0.1) as s:
        await s.start(command(health_check_timeout=0.1, recovery_threshold=3600))
        (instance,) = s.instances()
        os.kill(instance.pid, signal.SIGSTOP)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.UNHEALTHY)
        os.kill(instance.pid, signal.SIGCONT)
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING)
        assert s.instances()[0].pid == instance.pid


@pytest.mark.parametrize("days", [1, -1])
async def test_a_wall_clock_that_jumps_by_a_day_restarts_nothing(
    supervisor, recorder, command, monkeypatch, days
):
    """Neither one that is well, nor one that hangs or is starting: each has as long as it had."""
    async with supervisor(health_check_interval=0.05) as s:
        await s.start(well := command(name="well", recovery_threshold=60, stable_after=3600))
        hung = command(name="hung", health_check_timeout=0.1, unhealthy_threshold=1, recovery_threshold=60)
        await s.start(hung)
        os.kill(s.instances(hung.service_id)[0].pid, signal.SIGSTOP)
        await recorder.until(lambda: s.instances(hung.service_id)[0].status is ServiceStatus.UNHEALTHY)
        await s.start(command("--never-listen", name="starts", startup_timeout=60), wait=False)
        await s.start(waits := command("--exit-code", "1", name="waits", restart_delay=0.8))
        os.kill(s.instances(waits.service_id)[0].pid, signal.SIGUSR1)
        await recorder.until(lambda: s.instances(waits.service_id)[0].status is ServiceStatus.BACKOFF)
        begin = trio.current_time()
        jumped = timedelta(days=days)
        for module in ("instance", "slot"):
            monkeypatch.setattr(f"agentmgr.supervisor.{module}.utc_now", lambda: utc_now() + jumped)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jumped.total_seconds())
        before = len(recorder.checks)
        await recorder.until(lambda: s.instances(waits.service_id)[0].status is not ServiceStatus.BACKOFF)
        assert trio.current_time() - begin > 0.3
        for spec in (well, hung):  # and is checked as before
            await recorder.until(
                lambda: sum(c.service_id == spec.service_id for c in recorder.checks[before:]) > 5  # noqa: B023
            )
        told = {view.service_id: view for view in s.instances()}
        assert told.pop(waits.service_id).restart_count == 1
        assert [(view.status, view.restart_count) for view in told.values()] == [
            ("running", 0),
            ("unhealthy", 0),
            ("starting", 0),
        ]


MANAGER = """
import os, pathlib, sys, trio, trio.testing
from agentmgr.models import ServiceConfig, ServiceSpec
from agentmgr.supervisor import Supervisor

class Recorder:
    async def instance_spawned(self, record): pass
    async def instance_gone(self, instance_id): pass
    def instance_changed(self, instance): print(instance.slot, instance.status, instance.pid, flush=True)
    def health_checked(self, check): pass
    async def drain(self, instance_id, timeout_s, *, for_good): pass

async def main(child, logs):
    supervisor = Supervisor(Recorder(), log_dir=pathlib.Path(logs), health_check_interval=0.2)
    command = (sys.executable, "-S", child, "--port", "{port}")
    times = dict(health_check_timeout=1, recovery_threshold=1, startup_timeout=2, unhealthy_threshold=2)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await supervisor.start(ServiceSpec("svc", ServiceConfig(command=command, **times)))
        slow = (*command, "--ready-after", "1")
        nursery.start_soon(supervisor.start, ServiceSpec("later", ServiceConfig(command=slow, **times)))
        await trio.testing.wait_all_tasks_blocked()
        print("suspend me", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        await trio.sleep(1)
        print("done", flush=True)
        await supervisor.shutdown()

trio.run(main, *sys.argv[1:])
"""


def test_a_manager_that_is_suspended_restarts_nothing_when_it_goes_on(tmp_path, descendants):
    """For longer than every timeout that it has: the one that is starting is ready, and was not late."""
    words = [sys.executable, "-c", textwrap.dedent(MANAGER), str(CHILD), str(tmp_path / "logs")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as manager:
        seen = []
        for line in manager.stdout:
            seen.append(line)
            if line == "suspend me\n":  # it waits already, and not for its own work
                manager.send_signal(signal.SIGSTOP)
                time.sleep(2.5)
                manager.send_signal(signal.SIGCONT)
                manager.stdin.write("go on\n")
                manager.stdin.flush()
        assert manager.wait(20) == 0
    seen = seen[: seen.index("done\n")]
    assert not any("backoff" in line for line in seen), seen
    assert sum("running" in line for line in seen) >= 2
