"""A Slurm of one controller and some machines, in namespaces, with a munge and all files of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cluster.namespaces import Machine, machines
from tests.conditions import PATIENCE_S

_PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "scancel", "sinfo", "squeue")


class Slurm:
    """Machine 1 has the controller, and is none of those that jobs run on."""

    def __init__(self, directory: Path, made: Sequence[Machine]) -> None:
        self.directory, self.head, self.workers = directory, made[0], made[1:]
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(directory / "slurm.conf"),
            "AGENTMGR_DB": str(directory / "agents.db"),
        }

    def run(self, *words: str, **environment: str) -> str:
        """A command on the machine of the controller, in its root directory; its output."""
        try:
            found = self.head.run(*words, env={**self.environment, **environment})
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"{words}: {error.stdout}{error.stderr}") from None
        return found.strip()

    def start(self) -> None:
        """Skips the test where Slurm cannot run here, with what it says."""
        for name in ("state", *(f"spool.m{worker.number}" for worker in self.workers)):
            (self.directory / name).mkdir()
        (self.directory / "slurm.conf").write_text(self._configuration())
        plugin = "cgroup/v1" if Path("/sys/fs/cgroup/freezer").exists() else "autodetect"
        (self.directory / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\nIgnoreSystemd=yes\n")
        log = self.directory / "slurm.log"
        self.head.start("slurmctld", "-D", output=log, env=self.environment)
        for worker in self.workers:
            words = ["slurmd", "-D", "-N", f"m{worker.number}", "-d", _program("slurmstepd")]
            worker.start(*words, output=log, env=self.environment)
        give_up_at = time.monotonic() + PATIENCE_S
        while self.run("sinfo", "-h", "-o", "%T") != "idle":
            if time.monotonic() > give_up_at or "initialization failed" in log.read_text():
                pytest.skip(f"Slurm does not run here: {log.read_text()[-1000:]}")
            time.sleep(0.2)  # between looks: nothing tells of it

    def _configuration(self) -> str:
        last = self.workers[-1].number
        network = self.head.address.rpartition(".")[0]
        return "\n".join(
            (
                "ClusterName=test",
                f"SlurmctldHost=m1({self.head.address})",
                "SlurmUser=root",
                f"AuthInfo=socket={self.directory}/munge.socket",
                f"StateSaveLocation={self.directory}/state",
                f"SlurmdSpoolDir={self.directory}/spool.%n",
                f"SlurmctldPidFile={self.directory}/slurmctld.pid",
                f"SlurmdPidFile={self.directory}/slurmd.%n.pid",
                "ProctrackType=proctrack/cgroup",  # as at nearly all sites
                "TaskPlugin=task/none",
                "MpiDefault=none",
                *_plugins(),
                "SelectType=select/cons_tres",
                "KillWait=5",
                "SchedulerParameters=sched_interval=1",
                f"NodeName=m[2-{last}] NodeAddr={network}.[2-{last}] CPUs=1",
                "PartitionName=all Nodes=ALL Default=YES",
                "",
            )
        )


@contextmanager
def _no_groups_left() -> Iterator[None]:
    """Removes the control groups of Slurm's machines once those are gone; it has no init that does."""
    yield
    for group in Path("/sys/fs/cgroup").glob("*/slurm_m[0-9]"):
        for path, *_ in os.walk(group, topdown=False):
            with suppress(OSError):
                os.rmdir(path)


def _program(name: str) -> str:
    return str(shutil.which(name))


def _plugins() -> list[str]:
    """Where they are, if not where they were built to be: Debian's packages may be unpacked anywhere."""
    found = Path(_program("slurmd")).parents[1].glob("lib/*/slurm-wlm")
    return [f"PluginDir={directory}" for directory in found]


@contextmanager
def slurm(directory: Path, workers: int) -> Iterator[Slurm]:
    """Skips the test where there can be none, and says why."""
    if lacking := [name for name in _PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"there is no {lacking[0]}: .ci/slurm fetches Debian's Slurm and runs this")
    with _no_groups_left(), machines(workers + 1) as made:
        key = directory / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        words = ["munged", "--foreground", "--force", f"--key-file={key}"]
        for option in ("socket", "pid-file", "log-file", "seed-file"):
            words.append(f"--{option}={directory}/munge.{option.removesuffix('-file')}")
        with (directory / "munge.out").open("wb") as output:
            munged = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            found = Slurm(directory, made)
            found.start()
            yield found
        finally:
            munged.terminate()
            munged.wait()
