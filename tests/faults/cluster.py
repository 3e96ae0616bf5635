"""`python -m tests.faults.cluster [--seconds S] [--seed N]`: a real cluster under random faults.

A manager and three nodes on 127.0.0.2 to 127.0.0.4, with gateways on all of them, and clients that converse
through any of these. Meanwhile, at random times: kill -9 of instances, node daemons, gateways, the manager,
and whole machines; daemons suspended, for less and for longer than until their node is lost. What must hold:

* a process of an instance dies only by a fault that was its own, its machine's, or when its node was lost;
* there are two of one instance only while the node of one is not heard of;
* all are back after each fault, and at the end nothing runs but what should;
* each client gets its own answer, and gets one again after each fault.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count as numbers
from pathlib import Path
from statistics import median

import trio
from attrs import define, frozen
from trio_websocket import WebSocketConnection

from agentmgr.client.transport import CannotConnect, with_connection
from agentmgr.models import OnManagerDeath, ServiceConfig
from agentmgr.models.nodes import NodeState, OnNodeLoss
from agentmgr.supervisor import procfs
from tests.faults.machines import HEAD, LOST_AFTER_S, Machines
from tests.processes import alive

AGENT = """
import json, os
from pathlib import Path

# Shows the test that it runs, wherever that is.
started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
mark = {"pid": os.getpid(), "started": started, "instance": os.environ["AGENTMGR_INSTANCE_ID"]}
Path(MARKS, f"{os.getpid()}.json").write_text(json.dumps(mark))

def create_agent():
    async def answer(message):
        return f"answer to {message}"
    return answer
"""
TALKS, STRICT = "talks", "strict"
EXPECTED = {TALKS: 6, STRICT: 2}
UNHEARD_S = 20.0
"""After its node is heard of again, what was replaced meanwhile has ended so soon: it drains for 2 s."""
PATIENCE_S = 90.0


@frozen
class Seen:
    """A process of an instance, as the manager has shown it."""

    node: str
    what: str


def _lives(pid: int, started: int, instance: str) -> bool:
    """Not: whether another process has its pid now, which is to be neither counted nor killed."""
    stat = procfs.stat(pid)
    return stat is not None and stat.lives and stat.start_ticks == started


@define
class Client:
    """Asks through any gateway, over as many connections as it takes."""

    number: int
    answered: int = 0
    connections: int = 0
    last_at: float = 0.0
    longest_s: float = 0.0  #: without an answer

    async def run(self, urls: list[str], draw: random.Random, count: Counter[str], faults: list[str]) -> None:
        self.last_at = trio.current_time()

        async def converse(websocket: WebSocketConnection) -> None:
            self.connections += 1
            with trio.move_on_after(draw.uniform(1, 9)):
                await self._converse(websocket, draw, faults)

        while True:
            try:
                await with_connection(f"{draw.choice(urls)}/services/{TALKS}", [], converse)
            except CannotConnect as refused:
                count[f"refused: {refused.code}" if refused.code else "not connected"] += 1
            await trio.sleep(0.05)

    async def _converse(self, websocket: WebSocketConnection, draw: random.Random, faults: list[str]) -> None:
        for turn in numbers():
            text = f"{self.number}.{self.connections}.{turn}"
            await websocket.send_message(text)
            answer = str(await websocket.get_message())
            if answer.startswith("{"):  # a greeting, to one that was silent for a second
                answer = str(await websocket.get_message())
            if answer != f"answer to {text}":
                faults.append(f"client {self.number} got {answer!r} for {text!r}")
            now = trio.current_time()
            self.longest_s = max(self.longest_s, now - self.last_at)
            self.last_at = now
            self.answered += 1
            await trio.sleep(draw.uniform(0, 0.2))


class Run:
    """One run: what is done, what is seen, and what should not be."""

    def __init__(self, machines: Machines, draw: random.Random) -> None:
        self.machines, self._draw = machines, draw
        self.count: Counter[str] = Counter()
        self.faults: list[str] = []
        self.whole_after: dict[str, list[float]] = {}  #: seconds, by the kind of fault
        self._marks = machines.directory / "marks"
        self._seen: dict[int, Seen] = {}
        self._explained: set[int] = set()  # pids that may be gone
        self._unheard_until: dict[str, float] = {}  # by node: what ran there may be there twice
        self._losses = Counter[str]()  # that the managers have written down, by node
        self._manager_name = ""

    async def begin(self) -> None:
        self._marks.mkdir()
        place = self.machines.directory / "agent"
        place.mkdir()
        (place / "agent.py").write_text(AGENT.replace("MARKS", repr(str(self._marks))))
        await self.machines.begin()
        config = {
            "restart_delay": 0.1, "restart_delay_max": 1, "max_restart_count": 10**6, "drain_timeout": 2,
            "stop_timeout": 3,
        }  # fmt: skip
        talks = ServiceConfig(instances=EXPECTED[TALKS], **config)
        strict = ServiceConfig(
            instances=EXPECTED[STRICT], on_node_loss=OnNodeLoss.WAIT, on_manager_death=OnManagerDeath.DIE,
            **config,
        )  # fmt: skip
        async with self.machines.client() as manager:
            self._manager_name = (await manager.list_nodes())[0].name
            for name, chosen in ((TALKS, talks), (STRICT, strict)):
                await manager.register_service(name, str(place / "agent.py"), config=chosen)
                await manager.start_service(name)

    # What is seen

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await self._look()
            await trio.sleep(0.25)

    async def _look(self) -> None:
        for node in await self.machines.nodes():
            if node.state is NodeState.LOST:  # a daemon's start takes seconds on a busy machine
                self._not_heard(node.name)
        for it in await self.machines.instances() or ():
            if it.pid and it.status == "running":
                node = HEAD if it.node in ("", self._manager_name) else it.node
                self._seen[it.pid] = Seen(node, f"{it.service_id}/{it.slot}")
        dead = [pid for pid in self._seen if not alive(pid)]
        self._hear_of_losses()
        for pid in dead:
            seen = self._seen.pop(pid)
            if pid not in self._explained and not self._is_unheard(seen.node):
                self.faults.append(f"pid {pid} of {seen.what} on {seen.node} died, and nothing explains it")
        self._look_for_two()

    def _hear_of_losses(self) -> None:
        """Also of one that was over between two looks: the managers write down each before they act on it."""
        log = self.machines.log(HEAD).read_text()
        for node in self.machines.names:
            if (losses := log.count(f"node {node} is lost")) > self._losses[node]:
                self._losses[node] = losses
                self._not_heard(node)

    def _look_for_two(self) -> None:
        of: dict[str, list[int]] = {}
        for pid, instance in self.living().items():
            of.setdefault(instance, []).append(pid)
        for instance, pids in of.items():
            nodes = [self._seen[pid].node for pid in pids if pid in self._seen]
            if len(pids) > 1 and len(nodes) > 1 and not any(map(self._is_unheard, nodes)):
                fault = f"{instance} is there {len(pids)} times: {pids}, on {nodes}"
                if fault not in self.faults:
                    self.faults.append(fault)

    def living(self) -> dict[int, str]:
        """The id of its instance, by pid, as each has written down at its start."""
        marks = (json.loads(file.read_text() or "{}") for file in self._marks.glob("*.json"))
        return {mark["pid"]: mark["instance"] for mark in marks if mark and _lives(**mark)}

    def _is_unheard(self, node: str) -> bool:
        return trio.current_time() < self._unheard_until.get(node, 0.0)

    # What is done

    async def one(self) -> None:
        """One fault; sometimes waits until all is well again, and writes down how long that took."""
        kinds: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (8, self.kill_an_instance), (4, self.kill_a_daemon), (1, self.kill_a_daemon_for_long),
            (4, self.kill_the_manager), (4, self.kill_a_gateway), (2, self.kill_a_machine),
            (2, self.suspend_a_daemon),
        ]  # fmt: skip
        weights, faults = zip(*kinds, strict=True)
        [fault] = self._draw.choices(faults, weights)
        name = fault.__name__.replace("_", " ")
        began = trio.current_time()
        await fault()
        self.count[name] += 1
        if self._draw.random() < 0.5:
            await self.whole(name)
            self.whole_after.setdefault(name, []).append(trio.current_time() - began)

    async def whole(self, after: str) -> None:
        try:
            await self.machines.until(lambda: self.machines.are_whole(EXPECTED))
        except trio.TooSlowError:
            states = [
                f"{it.service_id}/{it.slot} {it.status} on {it.node}: {it.error_message}"
                for it in await self.machines.instances() or ()
            ]
            self.faults.append(f"not whole {PATIENCE_S:g} s after {after}: {states}")

    def _a_node(self) -> str:
        return self._draw.choice(self.machines.names)

    def _not_heard(self, node: str, seconds: float = 0.0) -> None:
        """What runs there may be lost, and be there twice, until a while after it is heard of again."""
        self._unheard_until[node] = trio.current_time() + seconds + UNHEARD_S

    async def kill_an_instance(self) -> None:
        if pids := sorted(self.living()):
            pid = self._draw.choice(pids)
            self._explained.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def kill_a_daemon(self, pause_s: float | None = None) -> None:
        """For less time than until its node is lost; `strict` dies with it all the same."""
        node = self._a_node()
        if pause_s is not None:
            self._not_heard(node, pause_s)
        self._explained |= {pid for pid, it in self._seen.items() if it.node == node and self._is_strict(it)}
        await self.machines.kill(node)
        await trio.sleep(self._draw.uniform(0, 1.5) if pause_s is None else pause_s)
        await self.machines.start_daemon(node)

    async def kill_a_daemon_for_long(self) -> None:
        await self.kill_a_daemon(LOST_AFTER_S + self._draw.uniform(1, 6))

    async def kill_the_manager(self) -> None:
        self._explained |= {pid for pid, it in self._seen.items() if it.node == HEAD and self._is_strict(it)}
        await self.machines.kill(HEAD)
        await trio.sleep(self._draw.uniform(0, 2))
        await self.machines.start_manager()

    async def kill_a_gateway(self) -> None:
        self.machines.kill_gateway(self._draw.choice((HEAD, *self.machines.names)))

    async def kill_a_machine(self) -> None:
        node, pause_s = self._a_node(), self._draw.uniform(0, LOST_AFTER_S + 4)
        self._not_heard(node, pause_s)
        await self.machines.kill_machine(node)
        await trio.sleep(pause_s)
        await self.machines.start_daemon(node)

    async def suspend_a_daemon(self) -> None:
        node, pause_s = self._a_node(), self._draw.uniform(0.5, LOST_AFTER_S + 8)
        self._not_heard(node, pause_s)
        self.machines.suspend(node)
        await trio.sleep(pause_s)
        self.machines.resume(node)

    def _is_strict(self, seen: Seen) -> bool:
        return seen.what.startswith(self._strict_id)

    _strict_id = ""

    async def know_ids(self) -> None:
        async with self.machines.client() as manager:
            self._strict_id = (await manager.get_service(STRICT)).service_id

    async def check_end(self, clients: list[Client]) -> None:
        """All is mended: each client is answered, and soon what runs is what the manager shows."""
        await self.whole("the end")
        before = [client.answered for client in clients]

        def unanswered() -> list[int]:
            return [c.number for c, then in zip(clients, before, strict=True) if c.answered <= then]

        with trio.move_on_after(PATIENCE_S):
            while unanswered():  # noqa: ASYNC110  # clients have no event for each answer
                await trio.sleep(0.1)
        if unanswered():
            self.faults.append(f"clients {unanswered()} are not answered any more")
        shown, there = set[int | None](), set[int]()
        with trio.move_on_after(UNHEARD_S):
            while not shown or shown != there:  # what was replaced drains
                await trio.sleep(0.1)
                shown = {it.pid for it in await self.machines.instances() or ()}
                there = set(self.living())
        if shown != there:
            self.faults.append(f"orphans {sorted(there - shown)}, missing {sorted(shown - there)}")


async def run_faults(
    directory: Path,
    draw: random.Random,
    *,
    seconds: float,
    clients: int,
    nodes: int,
    gateways: str,
) -> tuple[Run, list[Client]]:
    run = Run(Machines(directory, nodes, gateways), draw)
    talkers = [Client(number) for number in range(clients)]
    try:
        await run.begin()
        await run.know_ids()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.watch)
            for talker in talkers:
                own = random.Random(draw.random())
                nursery.start_soon(talker.run, run.machines.urls, own, run.count, run.faults)
            await run.whole("the start")
            with trio.move_on_after(seconds):
                while True:
                    with trio.CancelScope(shield=True):
                        await run.one()
                    await trio.sleep(draw.uniform(0, 2))
            await run.check_end(talkers)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            left = await run.machines.end()
    if left:
        run.faults.append(f"left over after the end: {left}")
    return run, talkers


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.faults.cluster", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--gateways", choices=["head", "all"], default="all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--keep", type=Path, help="an empty directory for all files, to look at afterwards")
    args = parser.parse_args()
    print(f"seed={args.seed}", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        directory = (args.keep or Path(temporary)).resolve()
        directory.mkdir(exist_ok=True)

        async def run() -> tuple[Run, list[Client]]:
            return await run_faults(
                directory, random.Random(args.seed), seconds=args.seconds, clients=args.clients,
                nodes=args.nodes, gateways=args.gateways,
            )  # fmt: skip

        done, clients = trio.run(run)
    for name, number in sorted(done.count.items()):
        took = done.whole_after.get(name)
        after = f"; whole after {median(took):.1f} s, at most {max(took):.1f} s" if took else ""
        print(f"{number:8}  {name}{after}")
    longest = sorted(client.longest_s for client in clients)
    print(f"{sum(client.answered for client in clients):8}  answers to {len(clients)} clients")
    print(f"{sum(client.connections for client in clients):8}  connections")
    print(
        f"{median(longest):8.1f}  s without an answer at most, in the median of clients; {longest[-1]:.1f} s"
    )
    for fault in done.faults:
        print(f"FAULT: {fault}")
    print(f"{len(done.faults):8}  faults; {time.monotonic() - begin:.0f} s")
    sys.exit(bool(done.faults))


if __name__ == "__main__":
    main()
