"""Machines for tests, as namespaces of this one: each has its own network, process table and host name.

They hang on one bridge, which is in a network namespace of its own: nothing of this machine's network is
touched. A cable can be pulled and put back, and a machine killed whole, as by a power cut. Files are shared.
It takes root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

_NETWORK = "10.213.77"

_INIT = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
print("up", flush=True)
while True:  # reaps what its parents have left
    signal.sigwait([signal.SIGCHLD])
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


class Machine:
    def __init__(self, number: int, init: int, hub: int) -> None:
        self.number, self.init = number, init  #: the pid of its first process
        self.address = f"{_NETWORK}.{number}"
        self._hub = hub
        self._started: list[subprocess.Popen[bytes]] = []

    def words(self, *command: str) -> list[str]:
        """The command, as it is run on this machine."""
        return ["nsenter", "-t", str(self.init), "-n", "-m", "-p", "-u", *command]

    def start(self, *command: str, output: Path, **options: Any) -> None:
        """It runs until it ends, or its machine is killed."""
        with output.open("ab") as file:
            options |= {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            self._started.append(subprocess.Popen(self.words(*command), **options))

    def reap(self) -> None:
        for process in self._started:
            process.wait(60)

    def run(self, *command: str, **options: Any) -> str:
        """Its output; raises `CalledProcessError`."""
        return subprocess.run(
            self.words(*command),
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            **options,
        ).stdout

    def pull_cable(self) -> None:
        _in_network(self._hub, "ip", "link", "set", f"v{self.number}", "down")

    def put_cable_back(self) -> None:
        _in_network(self._hub, "ip", "link", "set", f"v{self.number}", "up")

    def kill(self) -> None:
        """As by a power cut: every process at once, and its end of each connection says nothing."""
        self.pull_cable()
        os.kill(self.init, 9)


def missing() -> str | None:
    """Why there can be none here; None where there can."""
    if os.geteuid() != 0:
        return "namespaces take root"
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"namespaces take the program {program}"
    probe = ["unshare", "--net", "--pid", "--fork", "--mount", "--uts", "--mount-proc", "ip", "link"]
    tried = subprocess.run(probe, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return None if tried.returncode == 0 else f"no namespaces can be made here: {tried.stderr.strip()}"


@contextmanager
def machines(count: int) -> Iterator[Sequence[Machine]]:
    """Skips the test where there can be none, and says why."""
    if (why := missing()) is not None:
        pytest.skip(why)
    made: list[Machine] = []
    with ExitStack() as stack:
        stack.callback(lambda: [machine.reap() for machine in made])  # when all are killed
        hub = _first_process(stack, "--net")
        _in_network(hub, "ip", "link", "add", "hub", "type", "bridge")
        _in_network(hub, "ip", "link", "set", "hub", "up")
        for number in range(1, count + 1):
            init = _first_process(stack, "--net", "--pid", "--mount", "--uts", "--mount-proc")
            cable = ["link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", str(init)]
            _in_network(hub, "ip", *cable)
            _in_network(hub, "ip", "link", "set", f"v{number}", "master", "hub", "up")
            machine = Machine(number, init, hub)
            made.append(machine)
            machine.run("hostname", f"m{number}")
            for words in (
                ("link", "set", "lo", "up"),
                ("addr", "add", f"{machine.address}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
            ):
                machine.run("ip", *words)
        yield made


def _first_process(stack: ExitStack, *kinds: str) -> int:
    """Of new namespaces, as its pid is here; killed in the end, and all of them with it."""
    words = ["unshare", *kinds, "--fork", "--kill-child", sys.executable, "-S", "-c", _INIT]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    stack.enter_context(process)
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        return int(children.read())


def _in_network(pid: int, *command: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", *command], check=True, stdin=subprocess.DEVNULL)
