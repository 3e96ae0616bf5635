"""`examples/slurm/agents.sbatch`, in a real Slurm: its machines are nodes while the job runs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.slurm import Slurm, slurm
from tests.conditions import PATIENCE_S

RECIPE = Path(__file__).parents[2] / "examples/slurm/agents.sbatch"
AGENT = """
import os
def create_agent():
    async def answer(message):
        return f"{message} from {os.uname().nodename}"
    return answer
"""


class OfSlurm:
    """A manager, on the machine of Slurm's controller."""

    def __init__(self, slurm: Slurm) -> None:
        self.slurm, self.directory = slurm, slurm.directory
        local = self.directory / "local"  # a disk of each machine's own; all other files are shared
        local.mkdir()
        for worker in slurm.workers:
            worker.run("mount", "-t", "tmpfs", "none", str(local))
        self.recipe = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AGENTMGR_MANAGER": f"{slurm.head.address}:9443",
            "AGENTMGR_SECRET_FILE": str(self.directory / "secret"),
            "AGENTMGR_NODE_DIRECTORY": str(local / "node"),
        }

    def start_manager(self) -> None:
        words = ["daemon", "--cluster", "joined", "--cluster-host", self.slurm.head.address]
        words += ["--gateways", "all", "--proxy-port", "9090", "--node-lost-after", "5"]
        log = self.directory / "manager.log"
        command = [sys.executable, "-m", "agentmgr", *words]
        self.slurm.head.start(*command, output=log, env=self.slurm.environment)
        self.until(lambda: "gateway at" in log.read_text())

    def agentmgr(self, *words: str) -> str:
        return self.slurm.run(sys.executable, "-m", "agentmgr", *words)

    def submit(self) -> str:
        """The job's id."""
        options = ["--nodes", str(len(self.slurm.workers)), "--output", str(self.directory / "job.log")]
        return self.slurm.run("sbatch", *options, str(RECIPE), **self.recipe).split()[-1]

    def states(self) -> dict[str, str]:
        """Of the nodes that have joined."""
        found: list[dict[str, Any]] = json.loads(self.agentmgr("nodes", "--format", "json"))
        return {it["name"]: it["state"] for it in found if it["node_id"]}

    def placed(self) -> list[str]:
        """The nodes of the instances that run."""
        found = json.loads(self.agentmgr("status", "svc", "--format", "json"))
        return sorted(it["node"] for it in found["instances"] if it["status"] == "running")

    def until(self, holds: Callable[[], object]) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > give_up_at:
                logs = {it.name: it.read_text()[-2000:] for it in self.directory.glob("*.log")}
                raise AssertionError(f"it never held; {logs}")
            time.sleep(0.2)  # between looks: nothing tells of it


def test_the_recipe(on_disk: Path) -> None:
    with slurm(on_disk, workers=2) as made:
        cluster = OfSlurm(made)
        cluster.start_manager()
        (on_disk / "app").mkdir()
        (on_disk / "app/agent.py").write_text(AGENT)
        cluster.agentmgr("nodes", "invite", "--uses", "2", "--file", str(on_disk / "secret"))
        cluster.agentmgr("register", "svc", str(on_disk / "app/agent.py"), "--instances", "3")
        job = cluster.submit()
        cluster.until(lambda: cluster.states() == {"m2": "linked", "m3": "linked"})
        cluster.agentmgr("start", "svc")
        assert cluster.placed() == ["m1", "m2", "m3"]
        for host in ("localhost", *(worker.address for worker in made.workers)):
            url = f"ws://{host}:9090/services/svc"
            assert "hello from m" in cluster.agentmgr("chat", url, "--once", "hello")

        # The end of the job's time is near: all moves away. The next job's daemons take up work again.
        made.run("scancel", "--batch", "--signal=USR1", job)
        cluster.until(lambda: cluster.placed() == ["m1"] * 3)
        assert cluster.states() == {"m2": "cordoned", "m3": "cordoned"}
        made.run("scancel", job)
        cluster.until(lambda: not made.run("squeue", "-h"))
        job = cluster.submit()
        cluster.until(lambda: cluster.states() == {"m2": "linked", "m3": "linked"})

        # Ended without a warning: nothing is left there, and all of it starts elsewhere.
        cluster.agentmgr("scale", "svc", "6")
        cluster.until(lambda: cluster.placed().count("m1") < 6 == len(cluster.placed()))
        made.run("scancel", job)
        cluster.until(lambda: cluster.states() == {"m2": "lost", "m3": "lost"})
        for worker in made.workers:
            assert "agentmgr" not in worker.run("ps", "-ww", "-eo", "args=")
        cluster.until(lambda: cluster.placed() == ["m1"] * 6)
