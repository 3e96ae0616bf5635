"""Sessions in a cluster of real daemons: where they go on, who sees them, and what is lost with a machine."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.cluster.conftest import LOST_AFTER_S, ACluster

AGENT = """
def create_agent():
    async def answer(message, session):
        session.state["n"] = session.state.get("n", 0) + 1
        return f"{session.state['n']}: {message}"

    return answer
"""


def event(client: ClientConnection, *names: str) -> dict[str, Any]:
    """The next one of these."""
    while True:
        found: dict[str, Any] = json.loads(client.recv(timeout=30))
        if found["event"] in names:
            return found


def ask(client: ClientConnection, content: str, **fields: str) -> Any:
    client.send(json.dumps({"event": "user.message", "content": content, **fields}))
    return event(client, "agent.final_answer", "system.error")["content"]


def test_a_session_goes_on_at_its_node_is_steered_from_the_manager_and_lost_with_its_machine(
    a_cluster: ACluster,
) -> None:
    with a_cluster(nodes=2, lost_after_s=LOST_AFTER_S) as cluster:
        shell = cluster.shell
        (shell.directory / "my_agent.py").write_text(AGENT)
        head = next(name for name in cluster.nodes() if name not in "bc")
        shell.ok("register", "spread", "my_agent.py", "--instances", "3", "--auto-start")
        by_node = {node: position for position, node in cluster.placed("spread").items()}
        assert by_node.keys() == {head, "b", "c"}
        assert "no journal is kept elsewhere" in " ".join(shell.ok("status", "spread").split())

        # A session on each node is seen and steered as one of the manager's own machine.
        sessions: dict[str, str] = {}
        clients = ExitStack()
        while len(sessions) < 3:
            client = clients.enter_context(connect(f"{cluster.url}/services/spread"))
            client.send(json.dumps({"event": "user.create_session"}))
            session_id = event(client, "agent.session_created")["session_id"]
            instances = cluster.instances("spread").values()
            (node,) = [i["node"] for i in instances if session_id.endswith(i["instance_id"])]
            if node not in sessions:
                sessions[node] = session_id
                assert ask(client, "hi", session_id=session_id) == "1: hi"
        listed = json.loads(shell.ok("sessions", "spread", "--format", "json"))
        assert set(sessions.values()) <= {session["session_id"] for session in listed}
        on_b = sessions["b"]
        shell.ok("sessions", "say", on_b, "there?")
        cluster.until(lambda: "2: there?" in shell.ok("sessions", "show", on_b))
        clients.close()

        # Its instance dies: another process of that node takes it up.
        before = cluster.pids("spread")[by_node["b"]]
        os.kill(before, signal.SIGKILL)
        cluster.until(lambda: cluster.pids("spread")[by_node["b"]] not in (None, before))
        with connect(f"{cluster.url}/services/spread?session_id={on_b}") as client:
            assert ask(client, "again", session_id=on_b) == "3: again"

        # Its machine is lost: a host of another one says so, and begins a new one.
        cluster.kill_machine("b")
        cluster.until(lambda: cluster.states()["b"] == "lost")
        assert "node b is lost" in shell.fails("sessions", "show", on_b)

        def said() -> Any:
            with connect(f"{cluster.url}/services/spread?session_id={on_b}") as client:
                return ask(client, "still there?", session_id=on_b)

        cluster.until(lambda: said() == "node_lost" or said().get("reason") == "node_lost")
