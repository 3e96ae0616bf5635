"""Real Ray clusters on this machine: a head and workers, each with a raylet and a loopback address.

They need Ray itself, which is no part of the development extras: `.ci/ray` installs it and runs these tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.cli.conftest import here as here
from tests.cli.conftest import shell as shell
from tests.ports import own_port
from tests.processes import alive, end_all_in

HEAD = "127.0.0.2"
START_S = 90.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("ray") is None:
        reason = pytest.mark.skip(reason="Ray is not installed: `.ci/ray` installs it and runs these tests")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(reason)


class Ray:
    """One cluster. Its processes are known by a variable in their environment; no daemon of ours has it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.token = secrets.token_hex(16)
        self.address = f"{HEAD}:{own_port()}"
        self.state = directory / "state"  #: where the daemons of nodes have their directories
        self._mark = f"RAY_TEST_MARK={secrets.token_hex(8)}"
        self._sessions = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets must be short
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": "",
            "XDG_STATE_HOME": str(self.state),
        }

    def start(self, workers: int = 2) -> None:
        self.start_head()
        for number in range(workers):
            self.start_worker(number)

    def start_head(self, *more: str) -> None:
        port = self.address.rpartition(":")[2]
        words = ["--head", "--port", port, "--node-ip-address", HEAD, "--include-dashboard=false"]
        self._start("head", *words, "--temp-dir", str(self._sessions), *more)

    def start_autoscaling(self, *, worker: dict[str, float], idle_s: float) -> None:
        """A head whose autoscaler adds a machine with these resources, one at most, by Ray's provider for
        tests, and removes it after so many seconds of idleness. It is at this machine's own address.
        """
        of_head = {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0}
        of_worker = {"resources": dict(worker), "node_config": {}, "min_workers": 0, "max_workers": 1}
        config = {
            "cluster_name": "tests",
            "max_workers": 1,
            "idle_timeout_minutes": idle_s / 60,
            "upscaling_speed": 1.0,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {"ray.head.default": of_head, "ray.worker.test": of_worker},
            "head_node_type": "ray.head.default",
            **{key: {} for key in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")},
            **{key: [] for key in ("initialization_commands", "setup_commands", "cluster_synced_files")},
            **{key: [] for key in ("head_setup_commands", "worker_setup_commands")},
            **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
        }
        file = self.directory / "autoscaler.json"
        file.write_text(json.dumps(config))
        self.environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        self.start_head("--autoscaling-config", str(file))

    def start_worker(self, number: int, *words: str) -> None:
        """At 127.0.0.3 and up, with the label `zone`: z0, z1, …"""
        own = ["--address", self.address, "--node-ip-address", self.host(number)]
        self._start(f"worker {number}", *own, "--labels", f"zone=z{number}", *words)

    def host(self, number: int) -> str:
        return f"127.0.0.{number + 3}"

    def _start(self, what: str, *words: str) -> None:
        """Returns when it has joined."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus", "2"]
        command += ["--object-store-memory", "80000000", "--disable-usage-stats", *words]
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]  # any: others are taken by tests
        name, _, mark = self._mark.partition("=")
        # On a busy machine a raylet takes longer than Ray waits for it by default.
        settings = {"RAY_raylet_start_wait_time_s": "60", "RAY_worker_niceness": "0", name: mark}
        # The head notices within seconds that a raylet was killed.
        settings |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment, **settings},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        assert done.returncode == 0, f"Ray's {what} has not started: {done.stdout} {done.stderr}"

    # Faults

    def kill_raylet(self, number: int) -> None:
        """All of a worker's Ray. Its daemon lives on."""
        host = self.host(number)
        self._kill(
            lambda command: f"--node_ip_address={host}" in command or f"--node-ip-address={host}" in command
        )

    def kill_gcs(self) -> None:
        self._kill(lambda command: "gcs_server" in command)

    def stop(self) -> None:
        """All of Ray is gone, as after `ray stop`."""
        self._kill(lambda command: True)

    def _kill(self, which: Callable[[str], bool]) -> None:
        pids = [pid for pid, command in self.processes() if which(command)]
        assert pids
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        give_up_at = time.monotonic() + 10
        while any(map(alive, pids)):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)  # between looks: these are not our children

    def processes(self) -> list[tuple[int, str]]:
        """Pid and command line of each."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if self._mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(
                            (int(entry.name), (entry / "cmdline").read_bytes().decode().replace("\0", " "))
                        )
        return found

    def end(self) -> None:
        if self.processes():
            self.stop()
        end_all_in(self.state)
        shutil.rmtree(self._sessions, ignore_errors=True)


ARay = Callable[..., AbstractContextManager[Ray]]


@pytest.fixture
def a_ray(tmp_path: Path) -> ARay:
    """`with a_ray(workers=2) as ray:`; None: nothing of it is started yet."""

    @contextmanager
    def make(workers: int | None = 2) -> Iterator[Ray]:
        ray = Ray(tmp_path)
        try:
            if workers is not None:
                ray.start(workers)
            yield ray
        finally:
            ray.end()

    return make


def bridges_of(pid: int) -> list[int]:
    """The bridges to Ray that this manager has now."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():  # each has children of its own
        with suppress(OSError):  # it has just ended, or its child has
            children = (thread / "children").read_text().split()
            found += [int(it) for it in children if b"ray_bridge" in Path(f"/proc/{it}/cmdline").read_bytes()]
    return found
