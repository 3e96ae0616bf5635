"""What services ask for, on a real Ray: by label, a custom resource and GPUs that it is told it has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.processes import end_all_in
from tests.ray.conftest import HEAD, Ray

SAYS = ("/bin/sh", "-c", "echo gpus=[$CUDA_VISIBLE_DEVICES] token=[$RAY_AUTH_TOKEN]; exec sleep 1000")
WITHIN_S = 60.0


class Manager:
    """`agentmgr daemon --cluster ray`, and the commands that ask it."""

    def __init__(self, ray: Ray, directory: Path) -> None:
        self.ray, self.directory = ray, directory
        self.environment = {**os.environ, **ray.environment}
        self.process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        words = ("daemon", "--cluster", "ray", "--ray-address", self.ray.address, "--cluster-host", HEAD)
        process = subprocess.Popen(
            [sys.executable, "-m", "agentmgr", *words, "--cluster-port", "0"],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        while not process.stdout.readline().startswith("managing"):
            assert process.poll() is None
        return process

    def killed_and_started_anew(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        self.process = self._started()

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "agentmgr", *words],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def register(self, name: str, *options: str, instances: int = 1) -> None:
        number = ("--instances", str(instances), "--ready", "started")
        self("register", name, *options, *number, "--", *SAYS)
        self("start", name, "--no-wait")

    def instances(self) -> dict[str, list[dict[str, Any]]]:
        services = json.loads(self("list", "--format", "json"))
        return {it["name"]: it["instances"] for it in services}

    def until(self, holds: Callable[[dict[str, list[dict[str, Any]]]], bool]) -> dict[str, Any]:
        give_up_at = time.monotonic() + WITHIN_S
        while not holds(seen := self.instances()):
            assert time.monotonic() < give_up_at, seen
        return seen


def running(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [it for it in instances if it["status"] == "running"]


def test_claims_by_label_custom_resource_and_gpu(tmp_path: Path) -> None:
    ray, manager = Ray(tmp_path), None
    try:
        ray.start_head()
        ray.start_worker(0, "--num-gpus", "2")
        ray.start_worker(1, "--num-gpus", "2", "--resources", '{"licence": 1}')
        manager = Manager(ray, tmp_path)
        manager.register("llm", "--gpus", "1", instances=5)
        manager.register("labelled", "--cpus", "0.1", "--place-on", "zone=z0")
        manager.register("licensed", "--resources", "licence=1")
        manager.register("plain", "--place-on", f"node={node_at(manager, HEAD)}")
        seen = manager.until(
            lambda seen: (
                len(running(seen["llm"])) == 4
                and all(running(seen[name]) for name in ("labelled", "licensed", "plain"))
            )
        )
        gpus = {(it["node"], *it["gpus"]) for it in running(seen["llm"])}
        z0, z1 = node_at(manager, ray.host(0)), node_at(manager, ray.host(1))
        assert gpus == {(z0, "0"), (z0, "1"), (z1, "0"), (z1, "1")}
        (waiting,) = [it for it in seen["llm"] if it["status"] == "starting"]
        assert waiting["error_message"] == "waits for 1 GPU: none is free"
        assert (seen["labelled"][0]["node"], seen["licensed"][0]["node"]) == (z0, z1)
        assert "gpus=[0] token=[]" in manager("logs", "llm")
        assert manager("logs", "plain").strip().endswith("gpus=[] token=[]"), "though its manager has it"
        assert f"{z1}  {ray.host(1)}  linked  3" in manager("nodes")
        assert "2/2" in manager("nodes")

        manager.killed_and_started_anew()
        pids = {it["pid"] for it in running(seen["llm"])}
        after = manager.until(lambda seen: len(running(seen["llm"])) == 4)
        assert {it["pid"] for it in running(after["llm"])} == pids
        manager("scale", "llm", "3")  # one that runs ends, or that which waits
        manager.until(lambda seen: len(running(seen["llm"])) == 3)
    finally:
        if manager is not None:
            manager.process.terminate()
            manager.process.communicate()
        end_all_in(tmp_path)
        ray.end()


def node_at(manager: Manager, address: str) -> str:
    """The name of the node there, once it has joined."""
    give_up_at = time.monotonic() + WITHIN_S
    while True:
        nodes = json.loads(manager("nodes", "--format", "json"))
        if found := [it["name"] for it in nodes if it["address"] == address]:
            return str(found[0])
        assert time.monotonic() < give_up_at, nodes
