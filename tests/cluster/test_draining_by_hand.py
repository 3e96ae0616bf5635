"""`agentmgr nodes drain` and `agentmgr node --drain`, with real daemons."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.cluster.conftest import ACluster
from tests.cluster.test_sessions_by_hand import AGENT, ask, event


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
        # Its machine is back, in the same directory: the next daemon has come to work.
        assert cluster.states()["c"] == "cordoned"
        cluster.kill_node("c")
        cluster.start_node("c")
        cluster.until(lambda: cluster.states()["c"] == "linked")
        assert "the directory of no node" in shell.fails(
            "node", "--drain", "--directory", str(shell.directory)
        )


def test_sessions_move_with_their_service_and_back(a_cluster: ACluster) -> None:
    with a_cluster(nodes=2) as cluster, ExitStack() as clients:
        shell = cluster.shell
        (shell.directory / "my_agent.py").write_text(AGENT)
        shell.ok("register", "svc", "my_agent.py", "--place-on", "zone=in(b,c)", "--auto-start")
        shell.ok("register", "still", "my_agent.py", "--place-on", "zone=in(b,c)", "--auto-start")

        def begin(service: str) -> str:
            with connect(f"{cluster.url}/services/{service}") as client:
                client.send(json.dumps({"event": "user.create_session"}))
                session_id = str(event(client, "agent.session_created")["session_id"])
                assert ask(client, "one") == "1: one"
                return session_id

        def goes_on(service: str, session_id: str, times: int) -> None:
            address = f"{cluster.url}/services/{service}?session_id={session_id}"
            with connect(address, open_timeout=30) as client:
                client.send(json.dumps({"event": "user.reconnect", "session_id": session_id, "last_seq": 0}))
                seqs = []
                while len(answers := [it for it in seqs if it[1] == "agent.final_answer"]) < times - 1:
                    found = json.loads(client.recv(timeout=30))
                    assert found["event"] != "system.error", found
                    if "seq" in found:
                        seqs.append((found["seq"], found["event"]))
                assert [seq for seq, _ in seqs] == list(range(1, len(seqs) + 1)), "every event once"
                assert ask(client, "more", session_id=session_id) == f"{times}: more"
                assert answers

        (node,) = cluster.placed("svc").values()
        (other,) = {"b", "c"} - {node}
        first = begin("svc")
        at_rest = begin("still")
        shell.ok("stop", "still")
        client = clients.enter_context(connect(f"{cluster.url}/services/svc?session_id={first}"))
        assert ask(client, "more", session_id=first) == "2: more"

        shell.ok("nodes", "drain", node)
        with pytest.raises(ConnectionClosed) as ended:
            while True:
                client.recv(timeout=30)
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 1012
        assert cluster.placed("svc") == {0: other}
        journals = list((cluster.directory(node) / "agent_node.d" / "sessions").glob("*.db"))
        assert journals == [], "nor of what is stopped"
        goes_on("svc", first, 3)
        shell.ok("sessions", "say", first, "by the manager")
        second = begin("svc")

        # Back again: what is begun there now is another generation than what has left.
        shell.ok("nodes", "uncordon", node)
        shell.ok("nodes", "drain", other)
        assert cluster.placed("svc") == {0: node}
        third = begin("svc")
        assert len({first.rpartition(".")[0][-4:], third.rpartition(".")[0][-4:]}) == 2
        cluster.kill_manager()
        cluster.start_manager()
        cluster.until(lambda: set(cluster.states().values()) <= {"linked", "cordoned"})
        goes_on("svc", first, 5)
        goes_on("svc", second, 2)
        goes_on("svc", third, 2)
        shell.ok("nodes", "uncordon", other)
        shell.ok("start", "still")
        goes_on("still", at_rest, 2)
