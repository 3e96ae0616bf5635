"""Kills instances, the daemon and the manager at random moments, for as long as it is told.

    python -m tests.node.kills --seeds 20 --first 1 --rounds 12 --instances 6

Real processes on one machine, without TLS and gateways. Never are there two processes of one instance; what a
manager has recorded lives on, with its pid, unless it was killed itself; at the end all run, and no process
is left that is none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import Factory, define

from agentmgr.supervisor import procfs
from agentmgr.supervisor.instance_tokens import InstanceTokens

PATIENCE_S = 60.0


class Violation(Exception):
    """What must never be."""


def environment(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(word.decode(errors="replace").split("=", 1) for word in words if b"=" in word)


@define
class Storm:
    seed: int
    instances: int
    directory: Path
    processes: dict[str, subprocess.Popen[bytes]] = Factory(dict)
    killed: set[int] = Factory(set)  #: pids of instances
    most_for_one: int = 0

    def start(self, what: str) -> None:
        words = [sys.executable, "-m", f"tests.node.{what}_process", str(self.directory / what[0])]
        words.append(str(self.directory / "link"))
        if what == "manager":
            (self.directory / what[0] / "ready").unlink(missing_ok=True)
            words.append(str(self.instances))
        log = open(self.directory / f"{what}.log", "ab")  # noqa: SIM115  # the child's
        self.processes[what] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()

    def kill(self, what: str) -> None:
        process = self.processes.pop(what)
        process.kill()
        process.wait()

    def running(self) -> dict[int, tuple[str, str]]:
        """Instance id and token of each living process of the node, by pid."""
        tokens = InstanceTokens.found(self.directory / "d" / "logs")
        found = {}
        for process in procfs.scan():
            if tokens is not None and process.token is not None and tokens.made(process.token):
                stat = procfs.stat(process.pid)
                if stat is not None and stat.lives:
                    instance_id = environment(process.pid).get("AGENTMGR_INSTANCE_ID", "?")
                    found[process.pid] = instance_id, process.token
        return found

    def look(self) -> dict[int, tuple[str, str]]:
        """Raises `Violation` if two processes are of one instance."""
        found = self.running()
        counts = Counter(instance_id for instance_id, _ in found.values())
        self.most_for_one = max([self.most_for_one, *counts.values()])
        if twice := [instance_id for instance_id, count in counts.items() if count > 1]:
            raise Violation(f"two processes of {twice}: {found}")
        return found

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            self.look()
            if time.monotonic() > deadline:
                raise Violation(f"not within {PATIENCE_S:g} s: {what}; {self.running()}")
            time.sleep(0.02)

    def all_run(self) -> bool:
        try:
            ready = (self.directory / "m" / "ready").read_text()
        except OSError:
            return False
        return ready == str(self.instances) and len(self.running()) == self.instances

    def rage(self, rounds: int) -> None:
        chance = random.Random(self.seed)
        for name in ("d", "m"):
            (self.directory / name).mkdir()
        self.start("manager")
        self.start("daemon")
        for _ in range(rounds):
            if chance.random() < 0.5:
                self.until("all run", self.all_run)
            recorded = self.recorded()
            before = {pid: it for pid, it in self.look().items() if it[1] in recorded}
            victims = chance.sample(["daemon", "manager", "instance", "instance"], chance.randint(1, 3))
            for victim in victims:
                time.sleep(chance.random() * 0.3)
                if victim in self.processes:
                    self.kill(victim)
                elif victim == "instance" and (pids := sorted(self.look())):
                    pid = chance.choice(pids)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    self.killed.add(pid)
            time.sleep(chance.random() * 0.3)
            self.look()
            for name in ("manager", "daemon"):
                if name not in self.processes:
                    self.start(name)
                    time.sleep(chance.random() * 0.5)
            if gone := before.keys() - self.running().keys() - self.killed:
                raise Violation(f"ended without having been killed: {gone}")
        self.until("all run at the end", self.all_run)

    def recorded(self) -> set[str]:
        """The tokens of the instances that any manager adopts from here on."""
        try:
            records = json.loads((self.directory / "m" / "records.json").read_text())["records"]
        except OSError:
            return set()
        return {record["token"] for record in records.values()}

    def end(self) -> None:
        for what in list(self.processes):
            self.kill(what)
        for pid in self.running():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def storm(seed: int, rounds: int, instances: int) -> str:
    """What happened, in one line. Raises `Violation`."""
    directory = Path(tempfile.mkdtemp(prefix="kills", dir="/dev/shm"))
    it = Storm(seed, instances, directory)
    began = time.monotonic()
    try:
        it.rage(rounds)
        took_s = time.monotonic() - began
        return f"seed {seed}: {rounds} rounds, {len(it.killed)} instances killed, {took_s:.1f} s"
    except Violation:
        for name in ("manager", "daemon"):
            print((directory / f"{name}.log").read_text(), file=sys.stderr)
        raise
    finally:
        it.end()
        shutil.rmtree(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, default in (("seeds", 20), ("first", 1), ("rounds", 12), ("instances", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    for seed in range(options.first, options.first + options.seeds):
        print(storm(seed, options.rounds, options.instances), flush=True)
