"""`python -m tests.faults.sessions [--seconds S] [--seed N]`: durable sessions under random faults.

A real manager, its gateway and hosts; clients that never give up, see `talkers.py`; and meanwhile, at random
times: kill -9 of hosts, of the gateway, of the manager, of everything; a host that is suspended until its
manager ends it, or for less; rolling restarts, stops and starts, and another number of instances. At the end
each session is read anew and compared.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio

from agentmgr.client import ManagerClient
from agentmgr.errors import AgentManagerError
from agentmgr.models import OnCrash, ServiceConfig
from agentmgr.process.paths import RuntimePaths
from agentmgr.worker.pidfile import living
from tests.faults.conversations import start_daemon
from tests.faults.talkers import AGENT, Kills, Talker
from tests.processes import end_all_in, working_in

SERVICE = "agent"
COMMAND_S = 120.0


class Faults:
    """What is done to the manager in `directory`, and to all that it runs."""

    def __init__(self, directory: Path, draw: random.Random, count: Counter[str]) -> None:
        self.directory, self._draw, self._count = directory, draw, count
        self._paths = RuntimePaths.of(directory / "agent_manager.db")
        self._daemon: trio.Process
        self.url = ""
        self.kills = Kills()

    async def begin(self, on_crash: OnCrash) -> None:
        (self.directory / "agent.py").write_text(AGENT)
        await self._start()
        config = ServiceConfig(
            instances=2, restart_delay=0, max_restart_count=10**6, on_crash=on_crash, max_turn_attempts=100,
            health_check_interval=0.5, health_check_timeout=0.5, unhealthy_threshold=2,
            recovery_threshold=0.5, stop_timeout=5, session_idle=1,
        )  # fmt: skip
        async with ManagerClient(self._paths.control_socket) as manager:
            await manager.register_service(SERVICE, str(self.directory / "agent.py"), config=config)
            await manager.start_service(SERVICE)

    async def _start(self) -> None:
        port = int(self.url.rpartition(":")[2] or 0)
        self._daemon, self.url = await start_daemon(self.directory, port)

    async def end(self) -> None:
        """Kills what is left."""
        self._daemon.terminate()
        with trio.move_on_after(30):
            await self._daemon.wait()
        end_all_in(self.directory)

    async def one(self) -> None:
        """One fault, drawn at random."""
        faults: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (8, self.kill_a_host), (2, self.kill_everything), (2, self.kill_the_manager),
            (2, self.kill_the_gateway), (3, self.suspend_a_host), (3, self.restart), (2, self.scale),
            (2, self.stop_and_start),
        ]  # fmt: skip
        weights, kinds = zip(*faults, strict=True)
        [fault] = self._draw.choices(kinds, weights)
        self._count[fault.__name__.replace("_", " ")] += 1
        try:
            with trio.fail_after(COMMAND_S):
                await fault()
        except (AgentManagerError, OSError) as refused:  # a command that met another fault
            self._count[f"commands refused: {refused}"] += 1

    async def hosts(self) -> list[int]:
        async with ManagerClient(self._paths.control_socket) as manager:
            service = await manager.get_service(SERVICE)
        return [instance.pid for instance in service.instances if instance.pid]

    def _kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def kill_a_host(self) -> None:
        if pids := await self.hosts():
            self.kills.so_far += 1
            self._kill(self._draw.choice(pids))

    async def kill_everything(self) -> None:
        self.kills.so_far += 1
        for pid in working_in(self.directory):
            self._kill(pid)
        await self._daemon.wait()
        end_all_in(self.directory)
        await self._start()

    async def kill_the_manager(self) -> None:
        self._daemon.kill()
        await self._daemon.wait()
        await self._start()

    async def kill_the_gateway(self) -> None:
        for worker in living(self._paths.workers):
            self._kill(worker.pid)

    async def suspend_a_host(self) -> None:
        """Until its manager has ended it, or for less."""
        pids = await self.hosts()
        if not pids:
            return
        pid = self._draw.choice(pids)
        self.kills.so_far += 1
        self.kills.under_way = True
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            await trio.sleep(self._draw.uniform(0.1, 6))
            os.kill(pid, signal.SIGCONT)
        await trio.sleep(3)  # for a manager that has begun to end it
        self.kills.under_way = False

    async def restart(self) -> None:
        async with ManagerClient(self._paths.control_socket) as manager:
            await manager.restart_service(SERVICE)

    async def scale(self) -> None:
        async with ManagerClient(self._paths.control_socket) as manager:
            await manager.scale_service(SERVICE, self._draw.randint(1, 3))

    async def stop_and_start(self) -> None:
        async with ManagerClient(self._paths.control_socket) as manager:
            await manager.stop_service(SERVICE)
            await trio.sleep(self._draw.uniform(0, 0.3))
            await manager.start_service(SERVICE)


async def converse_under_faults(
    directory: Path,
    draw: random.Random,
    *,
    seconds: float,
    clients: int,
    on_crash: OnCrash,
    eager: float = 0.0,
) -> tuple[Counter[str], list[str]]:
    """What was counted, and what should not have been."""
    count: Counter[str] = Counter()
    faults = Faults(directory, draw, count)
    try:
        await faults.begin(on_crash)
        talkers = [
            Talker(
                number, [faults.url], random.Random(draw.random()), count, faults.kills,
                eager=draw.random() < eager,
            )
            for number in range(clients)
        ]  # fmt: skip
        async with trio.open_nursery() as nursery:
            for talker in talkers:
                nursery.start_soon(talker.run)
            with trio.move_on_after(seconds):
                await trio.sleep(1)
                while True:
                    with trio.CancelScope(shield=True):
                        await faults.one()
                    await trio.sleep(draw.uniform(0, 2))
            for talker in talkers:
                talker.finish()
        async with trio.open_nursery() as nursery:
            for talker in talkers:
                if not talker.faults:
                    nursery.start_soon(talker.check_again)
    finally:
        with trio.CancelScope(shield=True):
            await faults.end()
    return count, [fault for talker in talkers for fault in talker.faults]


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.faults.sessions", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--on-crash", type=OnCrash, choices=list(OnCrash))
    parser.add_argument("--eager", type=float, default=0.0, help="the share of clients that never pause")
    parser.add_argument("--keep", type=Path, help="an empty directory for all files, to look at afterwards")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    on_crash = args.on_crash or draw.choice(list(OnCrash))
    print(f"seed={args.seed} on_crash={on_crash}", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.keep or Path(temporary)
        directory.mkdir(exist_ok=True)

        async def run() -> tuple[Counter[str], list[str]]:
            return await converse_under_faults(
                directory.resolve(),
                draw,
                seconds=args.seconds,
                clients=args.clients,
                on_crash=on_crash,
                eager=args.eager,
            )

        count, faults = trio.run(run)
    for name, number in sorted(count.items()):
        print(f"{number:8}  {name}")
    print(f"{len(faults):8}  faults: lost, doubled, reordered, or not as they were")
    print(f"{time.monotonic() - begin:8.0f}  seconds")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
