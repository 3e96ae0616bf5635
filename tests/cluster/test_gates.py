"""Instances on a node, reached through the gateway of the manager's machine and the gate of the node."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.cluster.conftest import ACluster, Cluster
from tests.cluster.test_by_hand import AGENT, said
from tests.ports import own_port
from tests.processes import working_in

WEB = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]


def gateways(cluster: Cluster, name: str) -> list[int]:
    """The processes of a node's gateways."""
    return [pid for pid in working_in(cluster.directory(name)) if b"agentmgr.worker" in _command(pid)]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def listening(pid: int) -> set[tuple[str, int]]:
    """Where a process listens, over IPv4."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            address, _, port = fields[1].partition(":")
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_instances_of_a_node_are_reached_through_its_gate_and_in_no_other_way(a_cluster: ACluster) -> None:
    with a_cluster(nodes=1) as cluster:
        shell = cluster.shell
        (shell.directory / "my_agent.py").write_text(AGENT)
        on_b = ("--place-on", "zone=b", "--auto-start")
        shell.ok("register", "agent", "my_agent.py", *on_b)
        shell.ok("register", "web", "--ready", "http", *on_b, "--", *WEB)

        with connect(f"{cluster.url}/services/agent") as client:
            assert said(client, "one").startswith("1 from ")
            web = cluster.url.replace("ws:", "http:") + "/services/web/"
            with urllib.request.urlopen(web, timeout=30) as answer:
                assert answer.status == 200

            # From the network there is the gate alone.
            (gateway,) = gateways(cluster, "b")
            (gate,) = listening(gateway)
            assert gate[0] == "127.0.0.2"
            for pid in (*cluster.pids("agent").values(), *cluster.pids("web").values()):
                assert {address for address, _ in listening(pid)} == {"127.0.0.1"}
            with socket.create_connection(gate, timeout=30) as stranger:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with pytest.raises(OSError, match="certificate required"):
                    with context.wrap_socket(stranger) as secure:
                        secure.recv(1)

            # A gateway that a terminal opens leads there too.
            port = own_port()
            guest = [sys.executable, "-m", "agentmgr", "proxy", "--port", str(port)]
            with shell.popen(guest, cwd=shell.directory, env=shell.environment) as process:
                try:
                    cluster.until(lambda: accepts(port))
                    with connect(f"ws://localhost:{port}/services/agent") as other:
                        assert said(other, "two").startswith("2 from ")
                finally:
                    process.terminate()

            # The gateway there dies: its client, whose agent lives, comes through the gate of the next one.
            os.kill(gateway, signal.SIGKILL)
            assert said(client, "three").startswith("3 from ")
            (info,) = json.loads(shell.ok("connections", "--format", "json"))
            assert info["resumed"] == 1
        assert gateways(cluster, "b") != [gateway]
