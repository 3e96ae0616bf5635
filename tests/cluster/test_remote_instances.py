"""Instances on another node: the real daemon, its link and the launcher, over memory streams and fakes."""

import os
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing
from attrs import frozen

from agentmgr.cluster.launcher import ClusterLauncher
from agentmgr.cluster.node_handle import NodeHandle, OrderFailed
from agentmgr.core.placement import Candidate
from agentmgr.core.restart import Exit
from agentmgr.errors import AgentManagerError
from agentmgr.models import DesiredStatus, HealthStatus, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.models.nodes import NodeState
from agentmgr.node.node import FORGOTTEN_S, Node
from agentmgr.node.protocol import Changed, Done, Facts
from agentmgr.supervisor import Supervisor
from agentmgr.testing.fake_launcher import Behaviour, FakeLauncher
from tests.supervisor.conftest import MemoryRecorder


def spec(name="svc", port=None, **config):
    config = ServiceConfig(agent_factory_path="agent.py", **config)
    return ServiceSpec(name, config, port=port, desired_status=DesiredStatus.RUNNING)


class Hooked(FakeLauncher):
    """Calls `as_it_launches`, once, between a launch and its answer."""

    as_it_launches = staticmethod(trio.lowlevel.checkpoint)

    def slot(self, spec, instance_id, position):
        slot = super().slot(spec, instance_id, position)
        launch = slot.launch

        async def launch_and_call(gpus=None):
            child = await launch(gpus)
            with trio.CancelScope(shield=True):
                call, self.as_it_launches = self.as_it_launches, trio.lowlevel.checkpoint
                await call()
            return child

        slot.launch = launch_and_call
        return slot


class Members:
    """The manager's own machine, `a`, and `b`."""

    def __init__(self, handle, own):
        self.handle, self.news, self.own = handle, handle.news, own

    def __iter__(self):
        return iter([self.handle])

    def get(self, node_id):
        return self.handle if node_id == "node-b" else None

    def candidates(self):
        state = NodeState.LINKED if self.handle.linked else NodeState.SILENT
        state = NodeState.LOST if self.handle.lost else state
        return [Candidate("", "a", self.own), Candidate("node-b", "b", state)]

    def know_all(self):
        self.handle.know_all()

    def name_of(self, node_id):
        return "b" if node_id else "a"


class OneNode:
    """The daemon of `b`, and the handle that its manager has of it."""

    def __init__(self, directory, nursery, launcher):
        self.directory, self.nursery, self.launcher = directory, nursery, launcher
        self.cut_off = False  #: no new link
        self.streams = []
        self.new_manager()

    # The manager

    def new_manager(self):
        self.handle = NodeHandle("node-b", "b", manager_id=f"m{len(self.streams)}")

    async def kill_manager(self):
        """It never says a word again; what its tasks do from here on reaches no node."""
        dead = self.handle
        await self.cut()
        self.new_manager()
        dead.lose("its manager was killed")

    @asynccontextmanager
    async def supervisor(self, recorder=None, adopt=(), here=None):
        """`here`: what the manager's own machine runs instances with; None: it runs none."""
        nodes = Members(self.handle, NodeState.CORDONED if here is None else NodeState.LINKED)
        launcher = ClusterLauncher(here or FakeLauncher(), nodes, check_interval_s=10)
        supervisor = Supervisor(recorder, launcher=launcher, log_dir=self.directory, random=lambda: 0.5)
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(supervisor.run, adopt=adopt))
            yield supervisor
            await supervisor.shutdown()

    # The node

    async def start_daemon(self):
        node = Node(self.directory, self.launcher, Facts("node-b", "host-b"), self.dial, random=lambda: 0.5)
        self.node, self.daemon = node, await self.nursery.start(self._run_daemon, node)

    async def _run_daemon(self, node, *, task_status):
        self.daemon_over = trio.Event()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                task_status.started(scope)
        self.daemon_over.set()

    async def dial(self):
        await trio.lowlevel.checkpoint()
        if self.cut_off:
            raise OSError("no route to host")
        ours, theirs = trio.testing.memory_stream_pair()
        self.streams.append(theirs)
        self.nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream):
        await self.handle.serve(stream)
        await trio.aclose_forcefully(stream)

    # Faults

    async def cut(self):
        self.cut_off = True
        await trio.aclose_forcefully(self.streams[-1])
        await self.until(lambda: not self.handle.linked)

    async def mend(self):
        self.cut_off = False
        await self.until(lambda: self.handle.linked)

    async def restart_daemon(self):
        self.daemon.cancel()
        await self.daemon_over.wait()
        await self.start_daemon()

    async def start_and_forget(self, spec):
        """By a manager that will be killed."""
        with suppress(AgentManagerError):
            async with self.supervisor() as supervisor:
                await supervisor.start(spec)

    async def until(self, holds):
        while not holds():
            await self.handle.news.park()


@pytest.fixture
async def launcher():
    return Hooked()


@pytest.fixture
async def b(tmp_path, nursery, launcher):
    b = OneNode(tmp_path, nursery, launcher)
    await b.start_daemon()
    return b


async def test_an_instance_runs_on_the_node_and_is_ended_there(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        (instance,) = supervisor.instances()
        assert (instance.status, instance.node_id, instance.node) == (ServiceStatus.RUNNING, "node-b", "b")
        assert len(launcher.running) == 1
    assert launcher.running == []


async def test_a_crash_is_known_at_once_with_its_last_words_and_it_starts_again(b, launcher, autojump_clock):
    launcher.behaviours = [Behaviour(last_words="out of luck")]
    async with b.supervisor() as supervisor:
        await supervisor.start(spec(restart_delay=5))
        launcher.crash("svc", Exit(code=3))
        await trio.sleep(1)
        (instance,) = supervisor.instances()
        assert instance.status is ServiceStatus.BACKOFF
        assert instance.error_message.endswith("exit code 3; its last output:\nout of luck")
        await trio.sleep(5)
        (instance,) = supervisor.instances()
        assert instance.status is ServiceStatus.RUNNING
        assert len(launcher.running) == 1


async def test_a_forgotten_node_ends_all_that_runs_there_after_some_time(b, launcher, autojump_clock):
    given_up = []
    b.node.given_up = lambda: given_up.append(trio.current_time())
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        b.handle.forget()
        await trio.sleep(FORGOTTEN_S - 10)
        assert (len(launcher.running), given_up) == (1, [])
        await trio.sleep(20)
        assert (launcher.running, len(given_up)) == ([], 1)


async def test_the_time_that_a_forgotten_node_has_does_not_begin_anew_with_each_daemon(
    b, tmp_path, launcher, autojump_clock
):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        known = tmp_path / "forgotten"
        assert not known.exists()
        known.touch()
        os.utime(known, (1, 1))  # an earlier daemon was told, long ago
        b.handle.forget()
        await trio.sleep(50)  # this one may join again
        assert len(launcher.running) == 1
        await trio.sleep(20)
        assert launcher.running == []


async def test_what_a_full_disk_kept_from_being_written_down_is_written_later(
    b, tmp_path, autojump_clock, caplog
):
    instances = tmp_path / "instances"
    instances.touch()  # as if nothing could be written there
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        await trio.sleep(60)
        assert [it for it in caplog.messages if "cannot write down" in it][1:] == []  # said once
        (instance,) = supervisor.instances()
        instances.unlink()
        await trio.sleep(2)
        assert [file.stem for file in instances.iterdir()] == [instance.instance_id]
    assert list(instances.iterdir()) == []


async def test_a_short_cut_of_the_link_changes_nothing(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        before = supervisor.instances()
        await b.cut()
        await trio.sleep(5)
        assert supervisor.instances()[0].status is ServiceStatus.RUNNING
        assert await supervisor.check(before[0].service_id) == ()  # no check, no verdict
        assert supervisor.instances()[0].error_message.startswith("node b is silent")
        await b.mend()
        await trio.sleep(60)
        assert supervisor.instances() == before
        assert launcher.launches == 1


async def test_what_a_lost_node_ran_starts_anew_and_is_ended_when_it_returns(b, launcher, autojump_clock):
    async with b.supervisor(recorder := MemoryRecorder()) as supervisor:
        await supervisor.start(spec(max_restart_count=0))
        await b.cut()
        b.handle.lose("silent for 15 s")
        await trio.sleep(1)
        (instance,) = supervisor.instances()
        assert instance.status is ServiceStatus.STARTING
        assert recorder.ends[-1].reason == "node b was lost (silent for 15 s)"
        assert len(launcher.running) == 1  # it cannot be reached
        await b.mend()
        await trio.sleep(60)
        (instance,) = supervisor.instances()
        assert (instance.status, instance.restart_count) == (ServiceStatus.RUNNING, 1)
        assert launcher.launches == 2
        assert len(launcher.running) == 1  # never two for good


async def test_an_answer_that_was_lost_is_given_again(b, launcher, autojump_clock):
    async def lose_the_answer():
        await b.cut()
        b.nursery.start_soon(b.mend)

    launcher.as_it_launches = lose_the_answer
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        assert launcher.launches == 1
        assert len(launcher.running) == 1


async def test_a_launch_is_not_repeated_by_the_next_daemon(b, launcher, autojump_clock):
    async def lose_the_answer_and_the_daemon():
        await b.cut()
        b.nursery.start_soon(go_on)

    async def go_on():
        await trio.sleep(1)  # of the test's clock: the launch is written down
        await b.restart_daemon()
        await b.mend()

    launcher.as_it_launches = lose_the_answer_and_the_daemon
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        assert launcher.launches == 1
        assert len(launcher.running) == 1


async def test_what_a_killed_manager_was_about_to_launch_is_ended_by_the_next(b, launcher, autojump_clock):
    launcher.as_it_launches = b.kill_manager
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.start_and_forget, spec())
        await b.until(lambda: launcher.launches == 1)
        nursery.cancel_scope.cancel()
    async with b.supervisor():
        await b.mend()
        await trio.sleep(60)
        assert launcher.running == []
        assert b.handle.instances == 0


async def test_the_next_manager_adopts_what_it_knows_and_ends_what_it_does_not(b, launcher, autojump_clock):
    recorder, known, unknown = MemoryRecorder(), spec("known", instances=2), spec("unknown")
    async with b.supervisor(recorder) as supervisor:
        await supervisor.start(known)
        await supervisor.start(unknown)
        await supervisor.shutdown(leave_running=True)
    records = [it for it in recorder.records.values() if it.service_id == known.service_id]
    assert len(launcher.running) == 3
    b.new_manager()
    await b.restart_daemon()
    await b.until(lambda: b.handle.linked)  # nothing is known yet, and nothing a stray
    async with b.supervisor(adopt=[(known, records)]) as supervisor:
        await trio.sleep(60)
        assert [it.status for it in supervisor.instances()] == [ServiceStatus.RUNNING] * 2
        assert {it.pid for it in supervisor.instances()} == {it.pid for it in records}
        assert [it.name for it in launcher.running] == ["known"] * 2


async def test_an_end_does_not_wait_for_a_node_that_is_lost(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        service = spec(stop_timeout=600, drain_timeout=0)
        launcher.behaviours = [Behaviour(stop_takes_s=600)]
        await supervisor.start(service)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.stop, service.service_id)
            await trio.sleep(1)
            await b.cut()
            b.handle.lose("silent for 15 s")
        assert supervisor.instances() == ()


async def test_a_stop_waits_15_s_for_a_silent_node_which_then_ends_it_by_itself(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        service = spec(drain_timeout=0)
        await supervisor.start(service)
        await b.cut()
        began = trio.current_time()
        await supervisor.stop(service.service_id)
        assert trio.current_time() - began == pytest.approx(15, abs=1)
        assert len(launcher.running) == 1
        await b.mend()
        await trio.sleep(1)
        assert launcher.running == []


async def test_a_forced_end_does_not_wait_for_a_silent_node(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        await b.cut()
        began = trio.current_time()
        await supervisor.shutdown(force=True, kill=True)
        assert trio.current_time() - began < 0.1


async def test_what_dies_with_its_manager_does_so_after_30_s_and_starts_anew_after_40(
    b, launcher, autojump_clock
):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec(on_manager_death="die"))
        await b.cut()
        began = trio.current_time()
        b.handle.lose("silent for 15 s")
        await trio.sleep(29)
        assert len(launcher.running) == 1
        await trio.sleep(3)
        assert launcher.running == []
        await trio.sleep_until(began + 39.9)
        assert supervisor.instances()[0].status is ServiceStatus.RUNNING
        await trio.sleep_until(began + 40.1)
        assert supervisor.instances()[0].status is ServiceStatus.STARTING


async def test_a_launch_on_a_silent_node_ends_when_that_is_lost_and_begins_elsewhere(
    b, launcher, autojump_clock
):
    launcher.as_it_launches = b.cut
    async with b.supervisor() as supervisor:
        await supervisor.start(spec(max_restart_count=0), wait=False)
        await b.until(lambda: not b.handle.linked)
        await trio.sleep(100)
        assert supervisor.instances()[0].status is ServiceStatus.STARTING  # the manager may be cut off
        b.handle.lose("silent for 15 s")
        await trio.sleep(1)
        assert supervisor.instances()[0].error_message.endswith("b is lost")
        await b.mend()
        await trio.sleep(60)
        assert supervisor.instances()[0].status is ServiceStatus.RUNNING
        assert len(launcher.running) == 1
    assert launcher.running == []


async def test_a_daemon_that_ends_leaves_its_instances_to_the_next(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec(instances=3))
        before = supervisor.instances()
        await b.restart_daemon()
        assert all(child.released for child in launcher.children[:3])
        await b.until(lambda: b.handle.linked)
        await trio.sleep(60)
        assert supervisor.instances() == before
        assert launcher.launches == 3


async def test_a_node_that_returns_without_an_instance_has_lost_it(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec(max_restart_count=0))
        for file in (b.directory / "instances").iterdir():
            file.unlink()
        await b.restart_daemon()
        await b.until(lambda: b.handle.linked)
        await trio.sleep(60)
        (instance,) = supervisor.instances()
        assert (instance.status, instance.restart_count) == (ServiceStatus.RUNNING, 1)


async def test_a_failing_check_is_reported_when_it_changes(b, launcher, autojump_clock):
    launcher.behaviours = [Behaviour(unwell_between_s=(60, 90))]
    async with b.supervisor() as supervisor:
        await supervisor.start(spec(health_check_interval=1))
        await trio.sleep(50)
        said = []
        b.handle.on(Changed, said.append)
        for quiet_s in range(8):
            launcher.running[0].quiet_s = quiet_s  # differs at each check, and is no news
            await trio.sleep(1)
        assert said == []
        await trio.sleep(10)
        assert supervisor.instances()[0].health is HealthStatus.UNHEALTHY
        await trio.sleep(30)
        assert supervisor.instances()[0].health is HealthStatus.HEALTHY


async def test_200_instances_attach_again_at_once(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec(instances=200))
        await b.restart_daemon()
        await b.until(lambda: b.handle.linked)
        await trio.sleep(30)
        assert {it.status for it in supervisor.instances()} == {ServiceStatus.RUNNING}
        assert launcher.launches == 200


async def test_an_adopted_instance_waits_for_its_node_beyond_its_startup_timeout(b, autojump_clock):
    recorder, service = MemoryRecorder(), spec()
    async with b.supervisor(recorder) as supervisor:
        await supervisor.start(service)
        await supervisor.shutdown(leave_running=True)
    await b.cut()
    b.new_manager()
    async with b.supervisor(adopt=[(service, list(recorder.records.values()))]) as supervisor:
        await trio.sleep(100)
        (instance,) = supervisor.instances()
        assert (instance.status, instance.node) == (ServiceStatus.STARTING, "b")
        assert instance.error_message.startswith("node b is silent")
        await b.mend()
        await trio.sleep(1)
        (instance,) = supervisor.instances()
        assert (instance.status, instance.restart_count) == (ServiceStatus.RUNNING, 0)


async def test_what_waits_for_its_node_goes_on_there_and_starts_elsewhere_only_when_that_is_forgotten(
    b, launcher, autojump_clock
):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec(on_node_loss="wait"))
        before = supervisor.instances()
        await b.cut()
        b.handle.lose("silent for 15 s")
        await trio.sleep(1000)
        assert supervisor.instances()[0].status is ServiceStatus.RUNNING
        await b.mend()
        await trio.sleep(60)
        assert (supervisor.instances(), launcher.launches) == (before, 1)
        b.handle.forget()
        await trio.sleep(1)
        assert supervisor.instances()[0].status is ServiceStatus.STARTING


async def test_a_fixed_port_is_free_before_the_next_takes_it(b, launcher, autojump_clock):
    launcher.behaviours = [Behaviour(stop_takes_s=5)]
    launcher.as_it_launches = b.kill_manager
    service = spec(port=8100, drain_timeout=600)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.start_and_forget, service)
        await b.until(lambda: launcher.launches == 1)
        nursery.cancel_scope.cancel()
    async with b.supervisor() as supervisor:
        await b.mend()
        await supervisor.start(service)
        old, new = launcher.children
        assert old.ended_at <= new.launched_at


async def test_what_dies_with_the_daemon_is_not_at_fault_for_that(b, launcher, autojump_clock):
    async with b.supervisor(recorder := MemoryRecorder()) as supervisor:
        await supervisor.start(spec(on_manager_death="die", max_restart_count=0))
        await b.restart_daemon()
        await trio.sleep(5)
        assert recorder.ends[0].reason.startswith("the daemon of its node ended")
        (instance,) = supervisor.instances()
        assert instance.status is ServiceStatus.RUNNING
        assert len(launcher.running) == 1


async def test_a_question_ends_as_soon_as_the_node_is_silent(b, autojump_clock):
    async with b.supervisor() as supervisor:
        service = spec(health_check_timeout=100)
        await supervisor.start(service)
        b.launcher.hang("svc")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.check, service.service_id)
            await trio.sleep(1)
            await b.cut()
            began = trio.current_time()
        assert trio.current_time() - began < 0.1
        b.launcher.running[0].hangs = False


async def test_a_daemon_that_is_not_let_in_says_why_and_so_does_the_manager(b, caplog, autojump_clock):
    await b.until(lambda: b.handle.linked)
    other = Node(b.directory / "copy", FakeLauncher(), Facts("node-b", "elsewhere"), b.dial)
    b.nursery.start_soon(other.run)
    await trio.sleep(10)
    assert b.handle.linked
    assert b.handle.facts.host_name == "host-b"
    refusals = [it for it in caplog.messages if "its directory was copied" in it]
    assert len(refusals) == 2  # each of them, once


async def test_a_node_that_was_forgotten_ends_what_it_runs_after_ten_minutes(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        b.handle.forget()
        await trio.sleep(590)
        assert len(launcher.running) == 1  # it may have been a mistake
        await trio.sleep(20)
        assert launcher.running == []


async def test_nothing_is_placed_before_the_known_nodes_had_time_to_link(b, launcher, autojump_clock):
    await b.cut()
    b.nursery.start_soon(b.mend)
    here = FakeLauncher()
    async with b.supervisor(here=here) as supervisor:
        await supervisor.start(spec(instances=2))
        assert {it.node for it in supervisor.instances()} == {"a", "b"}


async def test_a_node_that_stays_away_delays_the_first_starts_by_three_seconds(b, autojump_clock):
    await b.cut()
    async with b.supervisor(here=FakeLauncher()) as supervisor:
        began = trio.current_time()
        await supervisor.start(spec())
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)
        await supervisor.start(spec("second"))
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)


async def test_an_order_that_a_daemon_does_not_know_fails_and_its_link_stays_up(b, autojump_clock):
    @frozen
    class Dance:
        steps: int

    await b.until(lambda: b.handle.linked)
    refused = pytest.raises(OrderFailed, match="does not know the order Dance: update agentmgr on the node")
    with refused, trio.fail_after(60):
        await b.handle.call(Dance(3), Done)
    b.handle._link.put(Dance(3))  # no order: nothing to be answered
    await trio.sleep(10)
    assert b.handle.linked


async def test_a_slot_is_closed_after_the_end_of_the_child_that_was_meant_and_of_no_other(b, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        (instance,) = b.node.instances.values()
        token = instance.state.token
        assert not await instance.close_after(token)  # it lives
        await instance.run.end(0)
        assert not await instance.close_after("the token of an earlier child")
        assert await instance.close_after(token)
