"""A cluster on machines that can be cut off and killed whole: namespaces, with root.

The rules: a short cut changes nothing. What ran on a machine that is silent for too long starts elsewhere, at
once and without using its restart budget, and what comes back is ended where it was replaced. Nothing is
lost with a machine but what ran on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from agentmgr.client import ManagerClient
from agentmgr.errors import AgentManagerError
from agentmgr.models import Instance, ServiceConfig, ServiceStatus
from agentmgr.process.paths import RuntimePaths
from tests.cluster.namespaces import Machine, machines
from tests.conditions import PATIENCE_S

LOST_AFTER_S = 10.0  #: a busy machine takes some of it to see that a cable is out, and to link again

AGENT = """
import os, words
print(f"agent on {os.uname().nodename}", flush=True)
def create_agent():
    async def answer(message):
        print(f"asked: {message}", flush=True)
        return words.ANSWER
    return answer
"""


class OfMachines:
    """Machine 1 has the manager; each other one has a node of its name."""

    def __init__(self, directory: Path, made: Sequence[Machine]) -> None:
        self.directory, self.made = directory, made
        self.database = directory / "m.db"
        self.manager = ManagerClient(RuntimePaths.of(self.database).control_socket)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "agentmgr", *words]

    def start_manager(self) -> None:
        head = self.made[0]
        head.start(
            *self.command("daemon", "--db-path", str(self.database), "--cluster", "joined"),
            *("--cluster-host", head.address, "--node-lost-after", str(LOST_AFTER_S)),
            *("--gateways", "head"),
            cwd=self.directory,
            output=self.directory / "manager.log",
        )

    def start_node(self, machine: Machine, secret: str = "") -> None:
        name = f"m{machine.number}"
        words = self.command("node", "--directory", str(self.directory / name), "--name", name)
        machine.start(
            *words,
            *(("--join", f"{self.made[0].address}:9443") if secret else ()),
            cwd=self.directory,
            output=self.directory / f"{name}.log",
            env={**os.environ, "AGENTMGR_JOIN_SECRET": secret} if secret else None,
        )

    async def until(self, holds: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Looks until it gives something; with what the processes have said where it does not."""
        with trio.move_on_after(PATIENCE_S):
            while True:
                if found := await holds():
                    return found
                await trio.sleep(0.1)
        said = "".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in self.directory.glob("*.log"))
        pytest.fail(f"not within {PATIENCE_S:g} s: {what}\n{said}")

    async def state(self, name: str) -> str:
        return str((await self.manager.get_node(name)).state)

    async def is_in_state(self, name: str, state: str) -> None:
        async def holds() -> bool:
            return await self.state(name) == state

        await self.until(holds, f"{name} is {state}")

    async def running(self, service: str) -> dict[str, Instance]:
        """Its running instances, by their nodes; one is on each."""
        view = await self.manager.get_service(service)
        return {it.node: it for it in view.instances if it.status is ServiceStatus.RUNNING}

    async def has(self, service: str, count: int, *, on: set[str]) -> bool:
        """Whether so many run, on these nodes only."""
        view = await self.manager.get_service(service)
        nodes = [it.node for it in view.instances if it.status is ServiceStatus.RUNNING]
        return len(nodes) == count and set(nodes) <= on

    def pids(self, machine: Machine, word: str) -> list[int]:
        """The processes on a machine that have this in their command line."""
        listed = machine.run("ps", "-ww", "-eo", "pid=,args=").splitlines()
        return [int(line.split()[0]) for line in listed if word in line and "ps -ww" not in line]


@asynccontextmanager
async def cluster_of(directory: Path, count: int) -> AsyncIterator[OfMachines]:
    with machines(count) as made:
        cluster = OfMachines(directory, made)
        async with cluster.manager:
            cluster.start_manager()

            async def answers() -> bool:
                try:
                    return bool(await cluster.manager.list_nodes())
                except AgentManagerError:  # it does not listen yet
                    return False

            await cluster.until(answers, "the manager answers")
            invitation = await cluster.manager.invite_nodes(uses=count)
            for machine in made[1:]:
                cluster.start_node(machine, invitation.secret)
            for machine in made[1:]:

                async def linked(name: str = f"m{machine.number}") -> bool:
                    nodes = {node.name: node.state for node in await cluster.manager.list_nodes()}
                    return nodes.get(name) == "linked"

                await cluster.until(linked, f"m{machine.number} has joined")
            yield cluster


def pids(instances: dict[str, Instance]) -> dict[str, int | None]:
    """By node. Their figures change all the time."""
    return {node: it.pid for node, it in instances.items()}


async def test_cuts_and_power_cuts(on_disk: Path) -> None:
    async with cluster_of(on_disk, 4) as cluster:
        manager, (_, m2, m3, m4) = cluster.manager, cluster.made
        project = on_disk / "project"
        project.mkdir()
        (project / "agent.py").write_text(AGENT)
        (project / "words.py").write_text("ANSWER = 'from the bundle'\n")
        (project / "data").write_bytes(os.urandom(3_000_000))
        config = ServiceConfig(instances=4, max_restart_count=0)
        await manager.register_service("svc", str(project / "agent.py"), config=config)
        await manager.start_service("svc")
        before = await cluster.running("svc")
        assert before.keys() == {"m1", "m2", "m3", "m4"}

        # Each runs in what was sent there, and what it says is read from there.
        for machine in (m2, m3, m4):
            (pid,) = cluster.pids(machine, "agentmgr.agent")
            bundles = on_disk / f"m{machine.number}/bundles"
            assert str(bundles) in machine.run("cat", f"/proc/{pid}/cmdline")
            assert len(list(bundles.iterdir())) == 1
        async with manager.read_logs("svc", grep="^agent on") as pieces:
            lines = b"".join([piece async for piece in pieces]).splitlines()
        assert sorted(line.split()[-1] for line in lines) == [b"m1", b"m2", b"m3", b"m4"]

        # A short cut changes nothing.
        m3.pull_cable()
        await cluster.is_in_state("m3", "silent")
        assert pids(await cluster.running("svc")) == pids(before)
        m3.put_cable_back()
        await cluster.is_in_state("m3", "linked")
        assert pids(await cluster.running("svc")) == pids(before)

        # A long one, and a power cut: it starts elsewhere, also with no restarts allowed.
        (old,) = cluster.pids(m3, "agentmgr.agent")
        m3.pull_cable()
        m4.kill()
        await cluster.is_in_state("m3", "lost")
        await cluster.is_in_state("m4", "lost")
        await cluster.until(lambda: cluster.has("svc", 4, on={"m1", "m2"}), "four run on the others")
        assert cluster.pids(m3, "agentmgr.agent") == [old]

        # What comes back is ended there, and only that; what does not is forgotten.
        m3.put_cable_back()
        await cluster.is_in_state("m3", "linked")

        async def ended() -> bool:
            return cluster.pids(m3, "agentmgr.agent") == []

        await cluster.until(ended, "what was replaced is ended")
        assert await cluster.has("svc", 4, on={"m1", "m2"})
        await manager.forget_node("m4")
        assert [node.name for node in await manager.list_nodes()] == ["m1", "m2", "m3"]
