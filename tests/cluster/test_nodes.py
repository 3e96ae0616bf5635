"""Nodes over memory streams, with real daemons: what is told of them, and what may be placed where."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from agentmgr.cluster.node_handle import NodeHandle
from agentmgr.cluster.nodes import Nodes
from agentmgr.models.nodes import NodeState
from agentmgr.node.node import Node
from agentmgr.node.protocol import Facts
from agentmgr.testing import FakeLauncher


class Told:
    def __init__(self) -> None:
        self.states: list[tuple[float, str, NodeState, str]] = []
        self.described: list[tuple[str, str, dict[str, str]]] = []

    def node_changed(self, node_id: str, state: NodeState, reason: str) -> None:
        self.states.append((trio.current_time() - self.began, node_id, state, reason))
        raise RuntimeError("what observes the nodes must not hold them up")

    def node_described(self, handle: NodeHandle) -> None:
        self.described.append((handle.node_id, handle.address, dict(handle.labels)))

    began = 0.0


class Daemon:
    """Of the node `node_id`: linked with `nodes` while `is_on`."""

    def __init__(self, nodes: Nodes, directory: Path, node_id: str, facts: Facts | None = None) -> None:
        self.nodes, self.node_id, self.is_on = nodes, node_id, True
        self.links = trio.CancelScope()
        facts = facts or Facts(node_id, node_id)
        self._node = Node(directory, FakeLauncher(), facts, self._dial, random=lambda: 0.5)
        self._ours: list[trio.abc.Stream] = []

    async def _dial(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if not self.is_on:
            raise OSError("no route to host")
        ours, theirs = trio.testing.memory_stream_pair()
        self._ours.append(ours)
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: trio.abc.Stream) -> None:
        await self.nodes.serve(self.node_id, stream)
        await trio.aclose_forcefully(stream)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as self._nursery:
            await self._nursery.start(self._node.run)
            task_status.started()

    async def cut(self) -> None:
        self.is_on = False
        await trio.aclose_forcefully(self._ours[-1])

    async def linked(self, wanted: bool = True) -> None:
        handle = self.nodes.get(self.node_id)
        assert handle is not None
        while handle.linked is not wanted:
            await handle.news.park()


@pytest.fixture
def told() -> Told:
    return Told()


async def test_states_follow_the_links_and_reach_the_observer(
    tmp_path: Path, told: Told, nursery: trio.Nursery, autojump_clock: object
) -> None:
    nodes = Nodes("m1", "a", observer=told)
    told.began = trio.current_time()
    nursery.start_soon(nodes.run)
    handle = nodes.add("nod_b", "b", address="old", labels={"zone": "old"})
    facts = Facts("nod_b", "host-b", address="10.0.0.2", labels={"zone": "b"})
    daemon = Daemon(nodes, tmp_path, "nod_b", facts)
    await nursery.start(daemon.run)
    await daemon.linked()
    assert told.described == [("nod_b", "10.0.0.2", {"zone": "b"})]
    assert [(c.node_id, c.name, c.state, c.labels) for c in nodes.candidates()] == [
        ("", "a", NodeState.LINKED, {"node": "a"}),
        ("nod_b", "b", NodeState.LINKED, {"zone": "b", "node": "b"}),
    ]
    nodes.cordon("nod_b", True)
    nodes.cordon("", True)
    assert {c.state for c in nodes.candidates()} == {NodeState.CORDONED}
    nodes.cordon("nod_b", False)
    await daemon.cut()
    await daemon.linked(False)
    assert nodes.candidates()[1].state is NodeState.SILENT
    while handle.lost is None:
        await handle.news.park()
    assert handle.lost == handle.state_reason == "silent for 15 s"
    daemon.is_on = True
    await daemon.linked()
    assert handle.lost is None
    states = [(node_id, state) for _, node_id, state, _ in told.states]
    assert states == [
        ("", NodeState.LINKED),
        ("nod_b", NodeState.LINKED),
        ("nod_b", NodeState.CORDONED),
        ("", NodeState.CORDONED),
        ("nod_b", NodeState.LINKED),
        ("nod_b", NodeState.SILENT),
        ("nod_b", NodeState.LOST),
        ("nod_b", NodeState.LINKED),
    ]
    [silent, lost] = [at for at, _, state, _ in told.states if state in (NodeState.SILENT, NodeState.LOST)]
    assert lost - silent == pytest.approx(15)


async def test_a_forgotten_node_is_given_up_and_not_served(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: object
) -> None:
    nodes = Nodes("m1", "a")
    nursery.start_soon(nodes.run)
    handle = nodes.add("nod_b", "b")
    daemon = Daemon(nodes, tmp_path, "nod_b")
    await nursery.start(daemon.run)
    await daemon.linked()
    nodes.forget("nod_b")
    assert (handle.lost, nodes.get("nod_b")) == ("it was forgotten", None)
    assert (nodes.name_of("nod_b"), nodes.name_of("")) == ("nod_b", "a")
    assert [c.node_id for c in nodes.candidates()] == [""]
    await trio.sleep(60)
    assert not handle.linked


async def test_a_manager_that_reaches_no_node_says_that_it_is_cut_off(autojump_clock: object) -> None:
    nodes = Nodes("m1", "a")
    handles = [nodes.add(f"nod_{name}", name, ran=True) for name in "bcd"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nodes.run)
        await trio.sleep(3600)
        assert [handle.lost for handle in handles] == [None] * 3
        [trouble] = nodes.troubles()
        assert trouble.startswith("3 of 4 nodes are silent")
        for handle in handles:
            nodes.forget(handle.node_id)
        assert nodes.troubles() == ()
        nursery.cancel_scope.cancel()


async def test_time_in_which_the_manager_was_paused_is_no_silence_of_its_nodes(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    nodes = Nodes("m1", "a")
    nursery.start_soon(nodes.run)
    handle = nodes.add("nod_b", "b")
    daemon = Daemon(nodes, tmp_path, "nod_b")
    await nursery.start(daemon.run)
    await daemon.linked()

    async def passes(seconds: float) -> None:
        mock_clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    await daemon.cut()
    await daemon.linked(False)
    await trio.testing.wait_all_tasks_blocked()
    await passes(60)
    assert handle.state is NodeState.SILENT
    for _ in range(13):
        await passes(1)
    assert handle.state is NodeState.SILENT
    await passes(1)
    assert handle.state is NodeState.LOST
