"""A manager and its nodes as real processes on this machine: each node has a loopback address of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from agentmgr.client import ManagerClient
from agentmgr.errors import AgentManagerError
from agentmgr.models import Instance, Node
from agentmgr.models.nodes import NodeState
from agentmgr.process.paths import RuntimePaths
from tests.ports import own_port
from tests.processes import alive, end_all_in, working_in

HEAD = "head"  #: the name here of the manager's own machine
LOST_AFTER_S = 5  #: the shortest that there is
_PATIENCE_S = 90.0


class Machines:
    """The manager in `directory/head`; nodes b, c, … at 127.0.0.2 and up, in `directory/node-b` and so on."""

    def __init__(self, directory: Path, nodes: int, gateways: str) -> None:
        self.directory = directory
        self.names = tuple(chr(ord("b") + number) for number in range(nodes))
        self.paths = RuntimePaths.of(directory / HEAD / "agent_manager.db")
        self._cluster_port, self.proxy_port = own_port(), own_port()
        self._gateways = gateways
        self._processes: dict[str, trio.Process] = {}

    @property
    def urls(self) -> list[str]:
        """Of all gateways that clients may use."""
        hosts = [self._host(name) for name in self.names] if self._gateways == "all" else []
        return [f"ws://{host}:{self.proxy_port}" for host in ("127.0.0.1", *hosts)]

    def client(self) -> ManagerClient:
        return ManagerClient(self.paths.control_socket)

    def place(self, name: str) -> Path:
        """Where all processes of this machine work."""
        return self.directory / (HEAD if name == HEAD else f"node-{name}")

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    async def begin(self) -> None:
        """Returns when all nodes are linked."""
        await self.start_manager()
        secret = self.directory / "secret"
        async with self.client() as manager:
            secret.write_text((await manager.invite_nodes(uses=len(self.names))).secret)
        for name in self.names:
            await self.start_daemon(name, "--join", f"127.0.0.1:{self._cluster_port}",
                "--secret-file", str(secret), "--name", name, "--address", self._host(name))  # fmt: skip
        await self.until(self._all_linked)

    def _host(self, name: str) -> str:
        return f"127.0.0.{ord(name) - ord('a') + 1}"

    # Its parts

    async def start_manager(self) -> None:
        """Returns when it answers."""
        words = (
            "daemon", "--cluster", "joined", "--cluster-host", "127.0.0.1",
            "--cluster-port", self._cluster_port, "--gateways", self._gateways,
            "--proxy-port", self.proxy_port, "--node-lost-after", LOST_AFTER_S, "--interval", 0.5,
        )  # fmt: skip
        await self._start(HEAD, *map(str, words))
        await self.until(self._manager_answers)

    async def start_daemon(self, name: str, *words: str) -> None:
        await self._start(name, "node", *words)

    async def kill(self, name: str) -> None:
        """The manager or the daemon of a node; what it started lives on."""
        process = self._processes.pop(name)
        process.kill()
        await process.wait()

    def suspend(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGCONT)

    async def kill_machine(self, name: str) -> None:
        """All that runs on it."""
        end_all_in(self.place(name))
        await self._processes.pop(name).wait()

    def kill_gateway(self, name: str) -> bool:
        """The process that serves clients there, or relays for other nodes; returns whether there is one."""
        for pid in working_in(self.place(name)):
            with suppress(OSError):  # it has just ended
                if b"agentmgr.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    def is_running(self, name: str) -> bool:
        return name in self._processes

    async def end(self) -> list[int]:
        """Ends all, the manager first; returns what was left over, and kills that."""
        for name in (HEAD, *self.names):
            if (process := self._processes.pop(name, None)) is not None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                with trio.move_on_after(_PATIENCE_S):
                    await process.wait()
        with trio.move_on_after(5):  # gateways see the end of their daemons
            while working_in(self.directory):  # noqa: ASYNC110  # no event reaches this process
                await trio.sleep(0.1)
        left = working_in(self.directory)
        end_all_in(self.directory)
        return left

    # What is seen

    async def instances(self) -> list[Instance] | None:
        """Of all services; None: no manager answers."""
        try:
            async with self.client() as manager:
                return [it for service in await manager.list_services() for it in service.instances]
        except (AgentManagerError, OSError):
            return None

    async def until(self, holds: Callable[[], object]) -> None:
        """Looks until it does. Raises `trio.TooSlowError`."""
        with trio.fail_after(_PATIENCE_S):
            while not await holds():  # type: ignore[misc]  # noqa: ASYNC110  # as above
                await trio.sleep(0.1)

    async def _manager_answers(self) -> bool:
        return await self.instances() is not None

    async def nodes(self) -> list[Node]:
        """None of them if no manager answers."""
        try:
            async with self.client() as manager:
                return await manager.list_nodes()
        except (AgentManagerError, OSError):
            return []

    async def _all_linked(self) -> bool:
        nodes = await self.nodes()
        return len(nodes) == len(self.names) + 1 and {it.state for it in nodes} == {NodeState.LINKED}

    async def are_whole(self, expected: dict[str, int]) -> bool:
        """Whether all nodes are linked, and each service has that many instances, all of them running."""
        instances = await self.instances()
        if instances is None or not await self._all_linked():
            return False
        running = [it for it in instances if it.status == "running" and it.pid and alive(it.pid)]
        return len(running) == len(instances) == sum(expected.values())

    async def _start(self, name: str, *words: str) -> None:
        self.place(name).mkdir(exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AGENTMGR_")}
        with self.log(name).open("ab") as log:
            self._processes[name] = await trio.lowlevel.open_process(
                (sys.executable, "-m", "agentmgr", *words), cwd=self.place(name), env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
