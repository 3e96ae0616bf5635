"""A cluster as an operator types it, with real daemons: what is said, and what lives through which death."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx2
import pytest
import trio
from websockets.sync.client import ClientConnection, connect

from agentmgr.cli.json_output import PRINTED
from tests.cluster.conftest import HOST, ACluster, Cluster
from tests.processes import alive, working_in

AGENT = """
from pathlib import Path

def create_agent():
    seen = []

    async def answer(message):
        seen.append(message)
        return f"{len(seen)} from {Path.cwd()}"

    return answer
"""


def said(client: ClientConnection, message: str) -> str:
    """The whole answer."""
    client.send(message)
    while True:
        text = client.recv(timeout=30)
        found = json.loads(text) if text.startswith("{") else {}
        if found.get("event") == "agent.final_answer":
            return str(found["data"])
        if not found:
            return str(text)


def test_services_run_on_nodes_and_live_through_the_death_of_each_part(a_cluster: ACluster) -> None:
    with a_cluster(2, "--gateways", "all", lost_after_s=15) as cluster:  # a daemon is back sooner
        shell = cluster.shell
        (shell.directory / "my_agent.py").write_text(AGENT)
        head = next(name for name in cluster.nodes() if name not in "bc")
        _check_what_is_printed(cluster, head)

        # Spread over all, and bound to one.
        shell.ok("register", "spread", "my_agent.py", "--instances", "3", "--auto-start")
        shell.ok(
            "register", "bound", "my_agent.py", "--instances", "2", "--place-on", "zone=c", "--auto-start"
        )
        assert sorted(cluster.placed("spread").values()) == sorted([head, "b", "c"])
        assert set(cluster.placed("bound").values()) == {"c"}
        assert {name: node["instances"] for name, node in cluster.nodes().items()} == {
            head: 1,
            "b": 1,
            "c": 3,
        }
        shell.ok("register", "nowhere", "my_agent.py", "--place-on", "zone=x")
        assert "remarks" in shell.ok("status", "nowhere")
        refused = shell.fails("register", "claims", "my_agent.py", "--gpus", "1")
        assert "gpus cannot be reserved" in refused
        assert "node=NAME" in shell.fails("register", "fixed", "my_agent.py", "--port", "9555")
        (listed,) = [line for line in shell.ok("list").splitlines() if line.startswith("spread")]
        assert listed.split()[-3:] == sorted([head, "b", "c"])
        assert "zone=x" in shell.ok("start", "nowhere", "--no-wait") + shell.ok("status", "nowhere")
        shell.ok("unregister", "nowhere", "--force")

        # By any gateway.
        for host in (HOST, "127.0.0.2", "127.0.0.3"):
            cluster.until(lambda host=host: _listens(host, cluster.proxy_port))
            with connect(f"ws://{host}:{cluster.proxy_port}/services/bound") as client:
                assert str(cluster.directory("c")) in said(client, "hello")

        with connect(f"{cluster.url}/services/bound") as client:
            assert said(client, "one").startswith("1 from")

            # The daemon of its node is killed, and the manager: the session goes on, in the same processes.
            pids = cluster.pids("spread"), cluster.pids("bound")
            cluster.kill_node("c")
            cluster.until(lambda: cluster.states()["c"] == "silent")
            assert "2" in said(client, "two")
            cluster.start_node("c")
            cluster.until(lambda: cluster.states()["c"] == "linked")
            cluster.kill_manager()
            assert "3" in said(client, "three")
            assert "--cluster joined" in shell.fails("daemon", "--proxy-port", str(cluster.proxy_port))
            cluster.start_manager()
            cluster.until(lambda: set(cluster.states().values()) == {"linked"})
            assert "4" in said(client, "four")
        cluster.until(lambda: len(cluster.placed("bound")) == 2)
        assert (cluster.pids("spread"), cluster.pids("bound")) == pids

        # An instance is killed: it is started again, where it was.
        os.kill(pids[1][0], signal.SIGKILL)
        cluster.until(lambda: cluster.pids("bound")[0] not in (None, pids[1][0]))
        cluster.until(lambda: cluster.placed("bound") == {0: "c", 1: "c"})

        # A whole node is killed: what can run elsewhere does, no budget is used, and what cannot waits.
        cluster.kill_machine("c")
        cluster.until(lambda: cluster.states()["c"] == "lost")
        cluster.until(lambda: Counter(cluster.placed("spread").values()).keys() == {head, "b"})
        cluster.until(lambda: len(cluster.placed("spread")) == 3)
        assert len({instance["restarts_left"] for instance in cluster.instances("spread").values()}) == 1
        cluster.until(lambda: "zone=c" in str(cluster.instances("bound")[0]["error_message"]))
        assert "node.lost" in shell.ok("events")
        # From where we are: the path of a unix socket must not be long.
        metrics = trio.run(_metrics, shell.paths.control_socket.relative_to(shell.directory))
        assert 'agentmgr_node_state{node="c",state="lost"} 1.0' in metrics
        assert 'agentmgr_node_instances{node="c"} 0.0' in metrics

        # It comes back, and with it what waits for it. Nothing is there twice.
        cluster.start_node("c")
        cluster.until(lambda: cluster.placed("bound") == {0: "c", 1: "c"})
        on_c = set(cluster.pids("bound").values())
        cluster.until(lambda: len([p for p in working_in(cluster.directory("c")) if p in on_c]) == 2)

        assert "(b, c)" in shell("backup", "copy.db").stderr  # whose sessions are not in it

        # Cordoned, nothing new goes there; forgotten, it is out.
        shell.ok("nodes", "cordon", "c", head)
        assert cluster.states() == {head: "cordoned", "b": "linked", "c": "cordoned"}
        shell.ok("register", "late", "my_agent.py", "--instances", "2", "--auto-start")
        assert set(cluster.placed("late").values()) == {"b"}
        shell.ok("nodes", "uncordon", "c", head)
        assert "end `agentmgr node` there first" in shell.fails("nodes", "forget", "c")
        cluster.processes["c"].terminate()
        cluster.processes.pop("c").wait()
        assert "2 instances live on here" in cluster.log("c")
        shell.ok("nodes", "forget", "c")
        assert "c" not in cluster.nodes()
        cluster.start_node("c")
        cluster.until(lambda: "this node was forgotten" in cluster.log("c"))
        cluster.kill_machine("c")
        shell.ok("shutdown")
        cluster.processes.pop("").wait()
        cluster.until(lambda: not any(alive(pid) for pid in pids[0].values()))


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


async def _metrics(control_socket: Path) -> str:
    transport = httpx2.AsyncHTTPTransport(uds=str(control_socket))
    async with httpx2.AsyncClient(transport=transport, base_url="http://manager") as http:
        return (await http.get("/metrics")).text


def _check_what_is_printed(cluster: Cluster, head: str) -> None:
    shell = cluster.shell
    table = shell.ok("nodes").splitlines()
    assert " ".join(table[0].split()) == "NAME ADDRESS STATE INSTANCES SESSIONS CPU MEMORY LABELS"
    assert [line.split()[:3] for line in table[1:]] == [
        [head, HOST, "linked"],
        ["b", "127.0.0.2", "linked"],
        ["c", "127.0.0.3", "linked"],
    ]
    nodes = json.loads(shell.ok("nodes", "--format", "json"))
    one = json.loads(shell.ok("nodes", "show", "b", "--format", "json"))
    assert {*nodes[0]} == {*one} == {*PRINTED["nodes list"][1]} == {*PRINTED["nodes show NAME"][1]}
    assert one["labels"] == {"zone": "b"}
    assert "127.0.0.2" in shell.ok("nodes", "show", "b")
    assert f"cluster://{HOST}:{cluster.port}" in shell.ok("info")
    assert "no node is called 'x'" in shell.fails("nodes", "show", "x")


def test_what_keeps_a_machine_from_being_a_node_is_said_in_one_line(
    a_cluster: ACluster, tmp_path: Path
) -> None:
    with a_cluster(nodes=1) as cluster:
        shell, where = cluster.shell, f"{HOST}:{cluster.port}"

        def refused(*words: str, **environment: str) -> str:
            """What `agentmgr node` says as it fails."""
            done = shell("node", *words, **environment)
            assert done.returncode == 1, done
            last = done.stderr.splitlines()[-1]
            assert last.startswith("Error: ")
            assert "Traceback" not in done.stderr
            return last

        pid = cluster.processes["b"].pid
        there = str(cluster.directory("b") / "agent_node.d")
        assert f"runs in {there} already, pid {pid}: end that one" in refused("--directory", there)
        assert "links with the manager at" in shell.ok("node", "--join", where, "--directory", there)
        assert "no node was made here yet: `agentmgr node --join HOST:PORT`" in refused()
        assert not (shell.directory / "agent_node.d").exists()
        assert "there is no agent_node.d here, and no node runs" in refused("--drain")
        assert "No such command 'rm'" in shell("nodes", "rm", "b").stderr
        assert "NAME" in shell.ok("nodes", "--format", "table")
        assert "give a secret of `agentmgr nodes invite`" in refused("--join", where)
        used = str(shell.directory / "secret")
        assert "was used already, by b: make another one" in refused("--join", where, "--secret-file", used)
        assert "no secret of `agentmgr nodes invite`" in refused("--join", where, AGENTMGR_JOIN_SECRET="x")
        assert "cannot be read" in refused("--join", where, "--secret-file", "none")
        (shell.directory / "nothing").touch()
        assert "nothing: it is empty" in refused("--join", where, "--secret-file", "nothing")
        # What waits for a node is on none.
        shell.ok("register", "far", "--place-on", "zone=far", "--", "sleep", "1000")
        shell.fails("start", "far")
        (head,) = cluster.states().keys() - {"b"}
        assert "far/0" not in shell.ok("nodes", "show", head)
        assert "has not started yet: waits for a node with zone=far" in shell.ok("doctor", "--format", "json")
        shell.ok("unregister", "far")
        assert "HOST:PORT" in refused("--join", "a:b:c", "--secret-file", used)
        assert "a label is KEY=VALUE" in refused("--join", where, "--label", "zone")
        assert "other machines cannot join" not in shell("doctor").stdout
        cluster.kill_machine("b")
        cluster.until(lambda: cluster.states()["b"] == "silent")
        shell.ok("nodes", "forget", "b")
        assert "--cluster-host ADDRESS" in shell("doctor").stdout
    # Without a cluster.
    with shell.background("daemon"):
        cluster.until(lambda: shell.manager_pid() is not None)
        cluster.until(lambda: "no cluster" in shell("nodes").stderr)
        assert "`agentmgr daemon --cluster joined`" in shell.fails("nodes", "invite")


@pytest.mark.usefixtures("shell")
def test_one_machine_imports_nothing_of_clusters(tmp_path: Path) -> None:
    """A manager that supervises, without `--cluster`."""
    script = """
import sys, trio
from agentmgr import AgentManager

async def main():
    async with AgentManager("a.db"):
        pass
    names = ("agentmgr.node", "agentmgr.cluster", "agentmgr.manager.cluster", "agentmgr.ca", "cryptography")
    print([name for name in sys.modules if name.startswith(names)])

trio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
