"""`Supervisor` in somebody's application: no database, no gateway, no manager."""

import os
import signal
import subprocess
import sys

import pytest
import trio

from agentmgr import ServiceConfig, ServiceSpec, ServiceStatus, Supervisor, in_process
from agentmgr.errors import InvalidRequest, ServiceGivenUp, WrongState
from agentmgr.supervisor import NullRecorder
from tests.processes import alive

AGENT = "def create_agent():\n    async def answer(message):\n        return message\n    return answer\n"


@pytest.fixture
def process(tmp_path):
    """Makes services that are processes."""
    (tmp_path / "agent.py").write_text(AGENT)

    def make(name="svc", **config):
        return ServiceSpec(name, ServiceConfig(agent_factory_path=str(tmp_path / "agent.py"), **config))

    return make


async def gone(pid):
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(pidfd):
        await trio.lowlevel.wait_readable(pidfd)


async def test_functions_of_any_shape_are_services(autojump_clock):
    begun = []

    async def plain():
        begun.append("plain")
        await trio.sleep_forever()

    async def slow(*, task_status):
        await trio.sleep(3)
        begun.append("slow")
        task_status.started()
        await trio.sleep_forever()

    async with Supervisor() as supervisor:
        await supervisor.start(in_process(plain))
        await supervisor.start(in_process(slow, name="other"))
        assert begun == ["plain", "slow"]
        assert [i.status for i in supervisor.instances()] == [ServiceStatus.RUNNING] * 2


async def test_what_was_started_last_ends_first(autojump_clock):
    ended = []

    def service(name, after=()):
        async def run():
            try:
                await trio.sleep_forever()
            finally:
                ended.append(name)

        return in_process(run, name=name, after=after)

    async def application(supervisor):
        await supervisor.start(service("database"))
        await supervisor.start(service("agent", after=["database"]))
        await supervisor.start(service("web", after=["agent"]))

    async with Supervisor() as supervisor:
        await application(supervisor)
    assert ended == ["web", "agent", "database"]

    ended.clear()  # and in the same order when the application is cancelled, in either form
    with trio.CancelScope() as scope:
        async with Supervisor() as supervisor:
            await application(supervisor)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert ended == ["web", "agent", "database"]

    ended.clear()
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor()
        await nursery.start(supervisor.run)
        await application(supervisor)
        nursery.cancel_scope.cancel()
    assert ended == ["web", "agent", "database"]


async def test_an_error_of_the_application_leaves_as_it_is_and_everything_is_stopped(autojump_clock):
    stopped = trio.Event()

    async def service():
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    with pytest.raises(KeyError, match="mine"):
        async with Supervisor() as supervisor:
            await supervisor.start(in_process(service))
            raise KeyError("mine")
    assert stopped.is_set()


async def test_a_service_that_is_given_up_is_reported_and_reaches_nobody(autojump_clock):
    async def broken():
        await trio.sleep(1)
        raise KeyError("a bug")

    async with Supervisor() as supervisor:
        await supervisor.start(in_process(broken, max_restart_count=1))
        await trio.sleep(3600)
        (instance,) = supervisor.instances()
        assert instance.status is ServiceStatus.ERROR
        assert "a bug" in instance.error_message


async def test_giving_up_raises_where_that_was_asked_for_after_all_else_has_ended(autojump_clock):
    ended = []

    async def lives():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            ended.append("lives")

    async def broken():
        await trio.sleep(1)
        raise KeyError("a bug")

    with pytest.RaisesGroup(pytest.RaisesExc(ServiceGivenUp, match=r"service broken .*(.|\n)*a bug")):
        async with Supervisor() as supervisor:
            await supervisor.start(in_process(lives))
            await supervisor.start(in_process(broken, max_restart_count=1), on_give_up="raise")
            await trio.sleep_forever()
    assert ended == ["lives"]

    with pytest.RaisesGroup(ServiceGivenUp):
        async with trio.open_nursery() as nursery:
            supervisor = Supervisor()
            await nursery.start(supervisor.run)
            await supervisor.start(in_process(broken, restart="never"), on_give_up="raise")


async def test_a_journal_is_told_of_what_it_asks_for(autojump_clock):
    class Watch(NullRecorder):
        seen = ()

        def instance_changed(self, instance):
            self.seen += (instance.status,)

    async def service():
        await trio.sleep(1)

    watch = Watch()
    async with Supervisor(watch) as supervisor:
        await supervisor.start(in_process(service))
        await trio.sleep(2)
    assert dict.fromkeys(watch.seen) == dict.fromkeys(
        [ServiceStatus.STARTING, ServiceStatus.RUNNING, ServiceStatus.STOPPED]
    )


async def test_processes_are_run_too_and_end_with_the_application(tmp_path, process):
    with trio.fail_after(60):
        async with Supervisor(log_dir=tmp_path / "logs") as supervisor:
            await supervisor.start(process(instances=2))
            instances = supervisor.instances()
            assert all(alive(instance.pid) and instance.port for instance in instances)
            assert supervisor.log_path("svc").exists()
    assert not any(alive(instance.pid) for instance in instances)


async def test_a_process_needs_a_place_for_its_output(process):
    async with Supervisor() as supervisor:
        with pytest.raises(InvalidRequest, match="log_dir"):
            await supervisor.start(process())
        with pytest.raises(WrongState, match="log_dir"):
            supervisor.log_path("svc")


APPLICATION = """
import sys, trio
from agentmgr import ServiceConfig, ServiceSpec, Supervisor

async def main():
    async with Supervisor(log_dir="logs") as supervisor:
        for name, death in (("dies", "die"), ("stays", "keep")):
            config = ServiceConfig(agent_factory_path="agent.py", on_manager_death=death)
            await supervisor.start(ServiceSpec(name, config))
        print(*(instance.pid for instance in supervisor.instances()), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_killed_application_leaves_what_it_chose_and_the_next_one_clears_that_away(tmp_path, process):
    process()
    application = subprocess.Popen(
        [sys.executable, "-c", APPLICATION], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    with application:
        dies, stays = map(int, application.stdout.readline().split())
        application.kill()
    with trio.fail_after(60):
        await gone(dies)
        assert alive(stays)
        async with Supervisor(log_dir=tmp_path / "logs"):
            assert not alive(stays)


async def test_ctrl_c_ends_everything_in_order(tmp_path, process):
    process()
    application = subprocess.Popen(
        [sys.executable, "-c", APPLICATION],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with application:
        pids = [int(pid) for pid in application.stdout.readline().split()]
        application.send_signal(signal.SIGINT)
        with trio.fail_after(60):
            _, said = await trio.to_thread.run_sync(application.communicate)
    assert "KeyboardInterrupt" in said
    assert not any(alive(pid) for pid in pids)
