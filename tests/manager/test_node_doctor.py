"""What `agentmgr doctor` says of nodes: real daemons over memory streams."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from agentmgr.manager import node_doctor
from agentmgr.manager.node_doctor import examine_nodes
from agentmgr.models.nodes import NodeState
from agentmgr.node import checkup
from tests.cluster.few_nodes import Nodes


def service(**config):
    config = SimpleNamespace(python=config.get("python"))
    return SimpleNamespace(config=config, agent_factory_path="agent.py")


@pytest.fixture
async def nodes(tmp_path, nursery):
    nodes = Nodes(tmp_path, nursery)
    await nodes.start("b")
    nodes.handles["b"].state = NodeState.LINKED
    return nodes


async def lines(nodes, *services):
    found = await examine_nodes(nodes, services)
    return [f"{it.what}: {it.result}: {it.found}: {it.advice}" for it in found]


async def test_a_node_like_the_manager_has_one_line(nodes):
    (line,) = await lines(nodes, service(), service(python=sys.executable))
    assert line.startswith("node b: ok: linked, agentmgr ")


async def test_what_differs_is_named_with_what_to_do(nodes, monkeypatch):
    handle = nodes.handles["b"]
    handle.facts = handle.facts.__class__("b", "b", agentmgr="0.0.9", python="3.10.2")
    handle.clock_skew_s = -7.25
    ours = {"here-only": "1", "other": "2", **{f"lib{number}": "1" for number in range(7)}}
    monkeypatch.setattr(node_doctor, "packages", lambda: ours)
    monkeypatch.setattr(checkup, "packages", lambda: {"other": "1", "there-only": "1"})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    ok, *found = await lines(nodes, service(), service(python="/not/there/python"))
    assert ok == "node b: ok: linked, agentmgr 0.0.9, Python 3.10.2: "
    text = "\n".join(found)
    for said in (
        "warning: has agentmgr 0.0.9, the manager",
        "warning: has Python 3.10.2, the manager",
        "warning: its clock is 7.2 s behind: synchronise it",
        "warning: lacks packages that the manager has: here-only, lib0, lib1, lib2, lib3 and 3 more: install",
        "warning: has other versions of packages: other 1 (here 2): install the same there",
        "error: /not/there/python is not found: make it there",
        "error: 1 MiB free for logs and what is sent along: free some space there",
    ):
        assert f"node b: {said}" in text
    # No agent runs in the daemon's own Python: its packages matter to none.
    assert not any(
        "package" in line and "may find" not in line
        for line in await lines(nodes, service(python=sys.executable))
    )


async def test_nodes_that_cannot_be_asked_are_named(nodes):
    await nodes.cut("b")
    nodes.handles["b"].state = NodeState.SILENT
    (line,) = await lines(nodes)
    assert line.startswith("node b: warning: silent: ")
    nodes.handles["b"].state, nodes.handles["b"].state_reason = NodeState.LOST, "silent for 15 s"
    (line,) = await lines(nodes)
    assert line.startswith(
        "node b: error: lost: silent for 15 s: start its daemon; or, if it will not come back, "
    )
