"""Instances on another node: the real daemon, its link and the launcher, over memory streams and fakes."""

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from agentmgr.cluster.launcher import ClusterLauncher
from agentmgr.cluster.node_handle import NodeHandle
from agentmgr.core.placement import Candidate
from agentmgr.core.restart import Exit
from agentmgr.models import ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.models.nodes import NodeState
from agentmgr.node.node import Node
from agentmgr.node.protocol import Facts
from agentmgr.supervisor import Supervisor
from agentmgr.testing.fake_launcher import Behaviour, FakeLauncher


def spec(name="svc", **config):
    return ServiceSpec(name, ServiceConfig(agent_factory_path="agent.py", **config))


class OneNode:
    """A manager whose only node is `b`: it has none itself."""

    def __init__(self, directory, nursery, launcher):
        self.directory, self.nursery, self.launcher = directory, nursery, launcher
        self.cut_off = False  #: no new link
        self.streams = []
        self.new_manager()

    # The manager

    def new_manager(self):
        self.manager_nursery = None
        self.handle = NodeHandle("node-b", "b", manager_id=f"m{len(self.streams)}")
        self.news = self.handle.news

    def __iter__(self):
        return iter([self.handle])

    def get(self, node_id):
        return self.handle if node_id == "node-b" else None

    def candidates(self):
        state = NodeState.LINKED if self.handle.linked else NodeState.SILENT
        return [Candidate("node-b", "b", state)]

    def name_of(self, node_id):
        return "b" if node_id else "a"

    @asynccontextmanager
    async def supervisor(self, **options):
        launcher = ClusterLauncher(FakeLauncher(), self, check_interval_s=10)
        async with Supervisor(launcher=launcher, log_dir=self.directory, random=lambda: 0.5, **options) as it:
            yield it

    # The node

    async def start_daemon(self):
        node = Node(self.directory, self.launcher, Facts("node-b", "host-b"), self.dial, random=lambda: 0.5)
        self.daemon = await self.nursery.start(self._run_daemon, node)

    async def _run_daemon(self, node, *, task_status):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.run)
                task_status.started(scope)

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

    async def until(self, holds):
        while not holds():
            await self.handle.news.park()


@pytest.fixture
async def launcher():
    return FakeLauncher()


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


async def test_a_short_cut_of_the_link_changes_nothing(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        before = supervisor.instances()
        await b.cut()
        await trio.sleep(5)
        assert supervisor.instances()[0].status is ServiceStatus.RUNNING
        b.cut_off = False
        await b.until(lambda: b.handle.linked)
        await trio.sleep(60)
        assert supervisor.instances() == before
        assert launcher.launches == 1


async def test_a_lost_node_is_ended_anew_when_it_returns(b, launcher, autojump_clock):
    async with b.supervisor() as supervisor:
        await supervisor.start(spec())
        await b.cut()
        b.handle.lose("silent for 15 s")
        await trio.sleep(1)
        (instance,) = supervisor.instances()
        assert instance.status is ServiceStatus.STARTING
        assert len(launcher.running) == 1
        b.cut_off = False
        await b.until(lambda: b.handle.linked)
        await trio.sleep(60)
        (instance,) = supervisor.instances()
        assert instance.status is ServiceStatus.RUNNING
        assert instance.restart_count == 1
        assert launcher.launches == 2
        assert len(launcher.running) == 1
