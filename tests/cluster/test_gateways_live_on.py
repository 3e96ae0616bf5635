"""The gateway of a node, through the deaths of the manager, of its daemon and of its own: real daemons."""

from __future__ import annotations

import json
import os
import signal

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from agentmgr.worker.pidfile import living
from tests.cluster.conftest import ACluster, Cluster
from tests.conditions import heard
from tests.processes import alive

AGENT = """
def create_agent():
    async def answer(message):
        return f"echo: {message}"

    return answer
"""


def talk(client: ClientConnection, text: str) -> None:
    client.send(text)
    assert heard(client) == f"echo: {text}"


def gateways(cluster: Cluster) -> list[int]:
    return [found.pid for found in living(cluster.directory("b") / "agent_node.d" / "gateways")]


def serves(url: str) -> bool:
    try:
        with connect(url, open_timeout=10) as client:
            talk(client, "hello")
    except (OSError, WebSocketException):
        return False
    return True


def test_a_nodes_gateway_outlives_manager_and_daemon_and_is_started_again(a_cluster: ACluster) -> None:
    with a_cluster(1, "--gateways", "all") as cluster:
        shell = cluster.shell
        (shell.directory / "my_agent.py").write_text(AGENT)
        shell.ok("register", "there", "my_agent.py", "--place-on", "zone=b", "--auto-start")
        here, there = cluster.url, f"ws://127.0.0.2:{cluster.proxy_port}"
        cluster.until(lambda: serves(there))
        (gateway,) = gateways(cluster)
        with connect(there) as near, connect(here) as far:  # and one that passes the gate
            talk(near, "at first")
            talk(far, "at first")
            cluster.kill_manager()
            talk(near, "without a manager")
            talk(far, "without a manager")
            cluster.kill_node("b")
            talk(near, "without a daemon")
            talk(far, "without a daemon")
            cluster.start_manager()
            cluster.start_node("b")
            cluster.until(lambda: cluster.states()["b"] == "linked")
            cluster.until(lambda: len(json.loads(shell.ok("connections", "--format", "json"))) == 2)
            talk(near, "with others")
            talk(far, "with others")
            assert gateways(cluster) == [gateway], "taken over, and none beside it"
        os.kill(gateway, signal.SIGKILL)
        cluster.until(lambda: serves(there) and serves(here))
        (another,) = gateways(cluster)
        assert another != gateway
    assert not alive(another), "the manager's end is that of all"
