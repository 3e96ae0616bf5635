"""A cluster of real daemons on this machine: each node has a loopback address and a directory of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Shell
from tests.cli.conftest import here as here
from tests.cli.conftest import shell as shell
from tests.conditions import PATIENCE_S
from tests.ports import own_port
from tests.processes import end_all_in

HOST = "127.0.0.1"
LOST_AFTER_S = 5.0
"""The shortest that there is, for what is to be lost: the daemon of a busy machine may be late for it."""

Node = dict[str, Any]


class Cluster:
    """A manager, started with `--cluster joined`, and daemons of nodes named b, c, …, at 127.0.0.2 and up."""

    def __init__(self, shell: Shell, *words: str) -> None:
        """`words`: options of each manager."""
        self.shell, self._words = shell, words
        self.lost_after_s = PATIENCE_S  #: of managers that start from now on: by default nothing is
        self.port, self.proxy_port = own_port(), own_port()
        self.url = f"ws://localhost:{self.proxy_port}"
        self.processes: dict[str, subprocess.Popen[Any]] = {}  #: by node name; "": the manager
        (shell.directory / "head").mkdir()

    # The manager

    def start_manager(self) -> None:
        """Returns when it serves."""
        self._start(
            "",
            self.shell.directory / "head",
            [
                *(
                    "daemon",
                    "--db-path",
                    str(self.shell.paths.database),
                    "--proxy-port",
                    str(self.proxy_port),
                ),
                *("--cluster", "joined", "--cluster-host", HOST, "--cluster-port", str(self.port)),
                *("--node-lost-after", str(self.lost_after_s), "--interval", "0.5", *self._words),
            ],
        )
        self.until(lambda: "gateway at" in self.log("head"))

    def kill_manager(self) -> None:
        self._kill("")

    # Its nodes

    def invite(self, uses: int = 1) -> Path:
        """A file with the secret."""
        file = self.shell.directory / "secret"
        told = self.shell.ok("nodes", "invite", "--uses", str(uses), "--file", str(file))
        assert "agj_" not in told
        assert file.stat().st_mode & 0o777 == 0o600
        return file

    def directory(self, name: str) -> Path:
        """Where the daemon of a node works, and all that it starts."""
        return self.shell.directory / f"node-{name}"

    def start_node(self, name: str, *words: str, secret: Path | None = None) -> None:
        """With a secret it joins. Its label `zone` is its name."""
        directory = self.directory(name)
        directory.mkdir(exist_ok=True)
        joining = []
        if secret is not None:
            address = f"127.0.0.{ord(name[0]) - ord('a') + 1}"
            joining = ["--join", f"{HOST}:{self.port}", "--secret-file", str(secret), "--name", name]
            joining += ["--address", address, "--label", f"zone={name}"]
        self._start(name, directory, ["node", *joining, *words])

    def kill_node(self, name: str) -> None:
        """Its daemon only: what it has started lives on."""
        self._kill(name)

    def kill_machine(self, name: str) -> None:
        """All that runs on the node, as if at one moment."""
        end_all_in(self.directory(name))
        self.processes.pop(name).wait()

    # What is seen

    def log(self, name: str) -> str:
        return (self.shell.directory / f"{name}.log").read_text()

    def nodes(self) -> dict[str, Node]:
        """By name, as `agentmgr nodes` has them."""
        found: list[Node] = json.loads(self.shell.ok("nodes", "--format", "json"))
        return {node["name"]: node for node in found}

    def states(self) -> dict[str, str]:
        return {name: node["state"] for name, node in self.nodes().items()}

    def service_id(self, service: str) -> str:
        return str(json.loads(self.shell.ok("status", service, "--format", "json"))["service_id"])

    def instances(self, service: str) -> dict[int, Node]:
        """By position, as `agentmgr status` has them."""
        found = json.loads(self.shell.ok("status", service, "--format", "json"))
        return {instance["slot"]: instance for instance in found["instances"]}

    def placed(self, service: str) -> dict[int, str]:
        """The node of each instance that runs."""
        return {
            position: instance["node"]
            for position, instance in self.instances(service).items()
            if instance["status"] == "running"
        }

    def pids(self, service: str) -> dict[int, int]:
        return {position: instance["pid"] for position, instance in self.instances(service).items()}

    def until(self, holds: Callable[[], object], within_s: float = PATIENCE_S) -> None:
        """Looks until it does."""
        give_up_at = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > give_up_at:
                logs = {file.name: file.read_text()[-3000:] for file in self.shell.directory.glob("*.log")}
                raise AssertionError(f"it never held; {logs}")
            time.sleep(0.05)  # between looks: no event reaches this process

    # Processes

    def _start(self, name: str, directory: Path, words: list[str]) -> None:
        with open(self.shell.directory / f"{name or 'head'}.log", "w") as log:
            self.processes[name] = self.shell.popen(
                [sys.executable, "-m", "agentmgr", *words],
                cwd=directory,
                env=self.shell.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """In order, so that what is left over is seen."""
        if "" in self.processes:
            self.processes[""].terminate()
            self.processes.pop("").wait(PATIENCE_S)
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(PATIENCE_S)


ACluster = Callable[..., AbstractContextManager[Cluster]]


@pytest.fixture
def a_cluster(shell: Shell) -> ACluster:
    """`with a_cluster(nodes=2) as cluster:`, of a manager with that many linked nodes, `b`, `c`, …"""

    @contextmanager
    def make(nodes: int = 2, *words: str, lost_after_s: float = PATIENCE_S) -> Iterator[Cluster]:
        cluster = Cluster(shell, *words)
        cluster.lost_after_s = lost_after_s
        try:
            cluster.start_manager()
            names = [chr(ord("b") + number) for number in range(nodes)]
            secret = cluster.invite(uses=max(nodes, 1))
            for name in names:
                cluster.start_node(name, secret=secret)
            cluster.until(lambda: set(cluster.states().items()) >= {(name, "linked") for name in names})
            yield cluster
        finally:
            cluster.end()

    return make
