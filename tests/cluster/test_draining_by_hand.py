"""`agentmgr nodes drain` and `agentmgr node --drain`, with real daemons."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.cluster.conftest import ACluster
from tests.cluster.test_sessions_by_hand import AGENT, ask


def test_a_node_is_emptied_by_the_manager_or_by_itself(a_cluster: ACluster) -> None:
    with a_cluster(nodes=2) as cluster, ExitStack() as clients:
        shell = cluster.shell
        (shell.directory / "my_agent.py").write_text(AGENT)
        head = next(name for name in cluster.nodes() if name not in "bc")
        shell.ok("register", "svc", "my_agent.py", "--instances", "3", "--auto-start")
        shell.ok("register", "bound", "my_agent.py", "--place-on", "node=c", "--auto-start")
        shell.ok("register", "on-b", "my_agent.py", "--place-on", "zone=in(b,c)", "--auto-start")
        assert cluster.placed("on-b") == {0: "b"}
        client = clients.enter_context(connect(f"{cluster.url}/services/on-b"))
        assert ask(client, "hello") == "1: hello"

        assert shell.ok("nodes", "drain", "b").strip() == "drained b: 2 instances moved"
        nodes = cluster.nodes()
        assert (nodes["b"]["state"], nodes["b"]["instances"]) == ("cordoned", 0)
        assert cluster.placed("on-b") == {0: "c"}
        placed = list(cluster.placed("svc").values())
        assert (len(placed), set(placed)) == (3, {head, "c"})
        with pytest.raises(ConnectionClosed) as ended:
            client.recv(timeout=30)
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 1012
        assert shell.ok("nodes", "drain", "b").strip() == "drained b: 0 instances moved"
        shell.ok("nodes", "uncordon", "b")

        # As a pod's preStop: with the directory of the node alone.
        done = shell("node", "--drain", "--directory", str(cluster.directory("c") / "agent_node.d"))
        assert done.returncode == 1
        assert "bound/0 stays on c: it needs a node with node=c" in done.stderr
        assert cluster.placed("on-b") == {0: "b"}
        assert cluster.placed("bound") == {0: "c"}
        events = [json.loads(line) for line in shell.ok("events", "--format", "json").splitlines()]
        assert [it["detail"] for it in events if it["kind"] == "node.drained"] == [
            {"node": "b", "moved": 2, "left": 0},
            {"node": "b", "moved": 0, "left": 0},
            {"node": "c", "moved": placed.count("c") + 1, "left": 1},
        ]
        assert "the directory of no node" in shell.fails(
            "node", "--drain", "--directory", str(shell.directory)
        )
