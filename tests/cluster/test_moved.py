"""The manager moves to another machine while all runs: its nodes follow it, and the old one gives way.

Both managers are on this machine, at addresses of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from websockets.sync.client import connect

from tests.cluster.conftest import ACluster
from tests.cluster.test_by_hand import AGENT, said
from tests.conditions import PATIENCE_S
from tests.processes import alive

ELSEWHERE = "127.0.0.9"


def test_a_restored_manager_takes_the_nodes_and_the_old_one_ends_what_is_its_own(
    a_cluster: ACluster,
) -> None:
    with a_cluster(2, "--gateways", "all", "--node-label", "zone=a") as cluster:
        shell, port = cluster.shell, str(cluster.port)
        (shell.directory / "my_agent.py").write_text(AGENT)
        shell.ok("register", "svc", "my_agent.py", "--instances", "2", "--place-on", "zone=in(b,c)")
        shell.ok("start", "svc")
        pids = cluster.pids("svc")
        shell.ok("backup", "copy.db")
        shell.ok("register", "own", "my_agent.py", "--place-on", "zone=a", "--auto-start")
        (own,) = cluster.pids("own").values()

        there = {"AGENTMGR_DB": str(shell.directory / "moved.db")}
        keys = shell.directory / "copy.db.d"
        keys.rename(aside := shell.directory / "aside")
        without = shell("restore", "copy.db", **there)
        assert (
            f"(b, c) cannot link with it: the keys of its cluster are missing; bring {keys}" in without.stderr
        )
        aside.rename(keys)
        assert "its nodes (b, c) leave the manager of before for this one" in shell.ok(
            "restore", "copy.db", **there
        )
        with (
            connect(f"ws://127.0.0.2:{cluster.proxy_port}/services/svc") as client,
            open(shell.directory / "moved.log", "w") as log,
        ):
            assert said(client, "one").startswith("1 from")
            words = ["daemon", "--cluster", "joined", "--cluster-host", ELSEWHERE, "--cluster-port", port]
            words += ["--host", ELSEWHERE, "--proxy-port", str(cluster.proxy_port), "--gateways", "all"]
            manager: subprocess.Popen[Any] = shell.popen(
                [sys.executable, "-m", "agentmgr", *words],
                cwd=shell.directory,
                env={**shell.environment, **there},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            cluster.processes["moved"] = manager
            cluster.until(lambda: "gateway at" in cluster.log("moved"))

            # Nothing is changed by an address where no manager is, or that of another cluster's.
            in_b = ["--directory", str(cluster.directory("b") / "agent_node.d")]
            in_c = ["--directory", str(cluster.directory("c") / "agent_node.d")]
            assert "beside it --join can be given alone" in shell.fails(
                "node", "--join", f"{ELSEWHERE}:{port}", "--label", "x=y", *in_b
            )
            assert cluster.states()["b"] == "linked"

            # One command for each node; its daemon, its gateway and its instances go on.
            told = shell.ok("node", "--join", f"{ELSEWHERE}:{port}", *in_b)
            assert f"links with the manager at {ELSEWHERE}:{port} now" in told
            shell.ok("node", "--join", f"{ELSEWHERE}:{port}", *in_c)

            def followed() -> bool:
                nodes = json.loads(shell.ok("nodes", "--format", "json", **there))
                return {it["name"]: it["state"] for it in nodes}.items() >= {
                    "b": "linked",
                    "c": "linked",
                }.items()

            cluster.until(followed)
            found = json.loads(shell.ok("status", "svc", "--format", "json", **there))
            assert {it["slot"]: it["pid"] for it in found["instances"]} == pids
            assert said(client, "two").startswith("2 from")

            # The old one ends by itself, and what it has started on its own machine since.
            assert cluster.processes.pop("").wait(PATIENCE_S) == 1
            assert "this manager was replaced: the nodes of its cluster obey the manager on" in cluster.log(
                "head"
            )
            assert not alive(own)
            assert all(map(alive, pids.values()))
            refused = shell.fails("daemon", "--cluster", "joined", "--cluster-host", "127.0.0.1")
            assert "this manager was replaced" in refused
            ended = shell("shutdown")  # what serves at the old place ends, and nothing else
            assert (ended.returncode, "what ran on b, c" in ended.stderr) == (0, True)
            assert all(map(alive, pids.values()))

            # A file that is damaged moves nothing, and is mended by the same command.
            file = cluster.directory("c") / "agent_node.d/manager.json"
            file.write_text("{")
            shell.ok("node", "--join", f"{ELSEWHERE}:{port}", *in_c)
            assert ELSEWHERE in file.read_text()

            # A daemon that starts anew, with the address that it joined by, is where the manager is now.
            cluster.kill_node("b")
            cluster.start_node("b", "--join", f"127.0.0.1:{port}")
            cluster.until(lambda: f"of the manager at {ELSEWHERE}:{port}" in cluster.log("b"))
            assert f"has moved to {ELSEWHERE}:{port}" in cluster.log("b")
            cluster.until(followed)
            assert said(client, "three").startswith("3 from")

        manager.terminate()
        assert cluster.processes.pop("moved").wait(PATIENCE_S) == 0
