"""Killing managers: the other end of `manager_process.py`, and what must be true after each kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import trio

from agentmgr.process.paths import RuntimePaths
from agentmgr.supervisor import procfs
from agentmgr.supervisor.instance_tokens import InstanceTokens
from tests.proxy.conftest import connected
from tests.supervisor.conftest import CHILD, end

COMMAND = [sys.executable, "-S", str(CHILD), "--port", "{port}"]


class ManagerDied(Exception):
    """Before it answered; whether it did what it was asked is not known."""


class ManagerProcess:
    def __init__(self, process: trio.Process, nursery: trio.Nursery) -> None:
        self._process = process
        self._asked = 0
        self._sending = trio.Lock()
        self._answers: dict[int, dict[str, Any]] = {}
        self._ready = trio.Event()
        self._news = trio.lowlevel.ParkingLot()
        self._dead = False
        nursery.start_soon(self._read)

    @classmethod
    @asynccontextmanager
    async def running(cls, database: Path, *options: str) -> AsyncIterator[ManagerProcess]:
        """Killed, without ceremony, at the end."""
        words = [sys.executable, str(Path(__file__).with_name("manager_process.py")), str(database), *options]
        process = await trio.lowlevel.open_process(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        async with trio.open_nursery() as nursery:
            try:
                yield cls(process, nursery)
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                    await process.stdin.aclose()
                # Last of all: a checkpoint after it would put a cancellation in the place of an error.
                nursery.cancel_scope.cancel()

    async def ready(self) -> None:
        with trio.fail_after(30):
            await self._ready.wait()
        if self._dead:
            raise ManagerDied

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    async def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer, once what it says is durable. Raises `ManagerDied`."""
        self._asked += 1
        number = self._asked
        line = json.dumps({"id": number, "do": do, **request}) + "\n"
        try:
            async with self._sending:
                await self._process.stdin.send_all(line.encode())
        except trio.BrokenResourceError:
            raise ManagerDied from None
        with trio.fail_after(30):
            while number not in self._answers:
                if self._dead:
                    raise ManagerDied
                await self._news.park()
        return self._answers[number]

    async def _read(self) -> None:
        buffer = b""
        async for chunk in self._process.stdout:
            *complete, buffer = (buffer + chunk).split(b"\n")
            for line in complete:
                answer = json.loads(line)
                if "ready" in answer:
                    self._ready.set()
                else:
                    self._answers[answer["id"]] = answer
            self._news.unpark_all()
        self._dead = True
        self._ready.set()
        self._news.unpark_all()


def instances_of(database: Path) -> dict[str, list[int]]:
    """The living processes of each service, whoever knows of them, as their environment tells."""
    tokens = InstanceTokens.of(RuntimePaths.of(database).logs)
    found: dict[str, list[int]] = {}
    for pid in [p.pid for p in procfs.scan() if p.token is not None and tokens.made(p.token)]:
        with suppress(OSError, StopIteration):  # it has just ended
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            name = next(word for word in environ if word.startswith(b"AGENTMGR_SERVICE="))
            found.setdefault(name.decode().partition("=")[2], []).append(pid)
    return found


async def settled(manager: ManagerProcess, database: Path) -> dict[str, Any]:
    """What is registered, once all that is to run does; each exactly once, and nothing else."""
    with trio.fail_after(30):
        while True:
            services: dict[str, Any] = (await manager.ask("list"))["services"]
            wanted = {name for name, service in services.items() if service["desired"] == "running"}
            running = {
                name for name in services if [i[0] for i in services[name]["instances"]] == ["running"]
            }
            if wanted == running:
                break
            await trio.sleep(0.05)
    found = instances_of(database)
    for name in wanted:
        assert found.pop(name) == [services[name]["instances"][0][1]], name
    assert found == {}
    return services


async def kill_managers(database: Path, rounds: int, random: Random) -> Counter[str]:
    """Kills the manager at random moments, in its start too, while it is given commands.

    What was acknowledged is kept, what ran goes on under its pid, nothing runs twice, and a client that is
    connected straight to an agent notices nothing.
    """
    count: Counter[str] = Counter()
    registered: set[str] = set()
    unsure: Counter[str] = (
        Counter()
    )  # commands on each service that were under way when the manager was killed

    # What is only just being started may be swept instead: it is adopted once it is written down.
    settled_down: set[str] = set()

    async def command(manager: ManagerProcess, do: str, name: str) -> None:
        nonlocal settled_down
        settled_down -= {name}
        with suppress(ManagerDied):
            unsure[name] += 1
            extra = {"command": COMMAND} if do == "register" else {}
            answer = await manager.ask(do, name=name, **extra)
            if do in ("register", "unregister"):
                unsure[name] -= 1
                if "error" not in answer:
                    registered.add(name) if do == "register" else registered.discard(name)
            else:
                unsure[name] -= 1

    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        await manager.ask("register", name="rock", command=COMMAND, wait=True)
        rock = (await settled(manager, database))["rock"]["instances"][0]
    registered.add("rock")
    serial = 0
    async with connected(f"ws://127.0.0.1:{rock[2]}/") as session:
        for _ in range(rounds):
            before = instances_of(database)
            async with ManagerProcess.running(database) as manager:
                if random.random() < 0.25:  # while it starts and adopts
                    await trio.sleep(random.uniform(0, 1))
                    count["kills of a starting manager"] += 1
                    continue
                await manager.ready()
                services = await settled(manager, database)
                lost = registered - services.keys() - set(+unsure)
                assert not lost, lost
                count["registrations checked"] += len(registered)
                for name, pids in before.items():
                    if name in settled_down | {"rock"}:
                        assert services[name]["instances"][0][1] in pids
                        count["instances adopted"] += 1
                registered &= services.keys()
                unsure.clear()
                registered |= services.keys()
                settled_down = {name for name in services if services[name]["desired"] == "running"}
                async with trio.open_nursery() as nursery:
                    for _ in range(random.randint(1, 6)):
                        do = random.choice(["register", "register", "stop", "start", "restart", "unregister"])
                        serial += 1
                        others = sorted(registered - {"rock"})
                        name = f"s{serial}" if do == "register" or not others else random.choice(others)
                        if do == "register" or others:
                            nursery.start_soon(command, manager, do, name)
                            count["commands"] += 1
                    await trio.sleep(random.uniform(0, 0.5))
                    manager.kill()
                    count["kills of a manager"] += 1
            await session.send_message("did you notice?")
            assert await session.get_message() == "did you notice?"
            count["rounds"] += 1
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        services = await settled(manager, database)
        assert registered - set(+unsure) <= services.keys()
        assert services["rock"]["instances"][0][1] == rock[1]
        for name in services:
            await manager.ask("unregister", name=name)
        assert instances_of(database) == {}
    return count


def end_all(database: Path) -> None:
    """After a failure: nothing may survive the test."""
    end([pid for pids in instances_of(database).values() for pid in pids], RuntimePaths.of(database).logs)
