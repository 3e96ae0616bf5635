"""A manager's launcher with a few nodes: real daemons, links over memory streams, real directories."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import trio
import trio.testing

from agentmgr.cluster.launcher import ClusterLauncher
from agentmgr.cluster.node_handle import NodeHandle
from agentmgr.node.logs import NodeLogs
from agentmgr.node.node import Node
from agentmgr.node.protocol import Facts
from agentmgr.supervisor import logs
from agentmgr.supervisor.local import LocalLauncher
from agentmgr.testing.fake_launcher import FakeLauncher
from agentmgr.version import __version__


class Nodes:
    """A manager's nodes, as many as are started."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory, self.nursery = directory, nursery
        self.handles: dict[str, NodeHandle] = {}
        self.news = trio.lowlevel.ParkingLot()
        self.streams: dict[str, trio.abc.Stream] = {}
        self.whole: dict[str, trio.Event] = {}  # its cable
        (directory / "manager").mkdir()
        local = LocalLauncher(directory / "manager", fork_server=False)
        self.launcher = ClusterLauncher(local, self, check_interval_s=10)

    def __iter__(self):
        return iter(self.handles.values())

    def get(self, node_id):
        return self.handles.get(node_id)

    def candidates(self):
        return []

    def name_of(self, node_id):
        return node_id

    async def start(self, name):
        directory = self.directory / name
        directory.mkdir()
        handle = self.handles[name] = NodeHandle(name, name, manager_id="m")

        self.whole[name] = trio.Event()
        self.whole[name].set()

        async def dial():
            await self.whole[name].wait()
            ours, theirs = trio.testing.memory_stream_pair()
            self.streams[name] = theirs
            self.nursery.start_soon(handle.serve, theirs)
            return ours

        facts = Facts(name, name, agentmgr=__version__, python=platform.python_version())
        keeps = NodeLogs(directory / "logs")
        node = Node(directory, FakeLauncher(), facts, dial, logs=keeps)
        await self.nursery.start(node.run)
        while not handle.linked:
            await handle.news.park()

    def file(self, name, position=0):
        path = logs.path(
            self.directory / name / "logs" if name != "manager" else self.directory / name, "svc", position
        )
        os.close(logs.open_for_append(path))  # as an instance's, whose lines have times
        return path

    def mend(self, name):
        self.whole[name].set()

    async def cut(self, name):
        self.whole[name] = trio.Event()
        await trio.aclose_forcefully(self.streams[name])
        while self.handles[name].linked:
            await self.handles[name].news.park()
