"""`python -m tests.faults.cluster [--seconds S] [--seed N]`: a real cluster under random faults.

A manager and three nodes on 127.0.0.2 to 127.0.0.4, with gateways on all of them. Clients that converse in
durable sessions (`talkers.py`), and others at a service with `max_sessions` (`visitors.py`), come through any
of these gateways. Meanwhile, at random times: kill -9 of instances, node daemons, gateways, the manager, and
whole machines; daemons suspended, for less and for longer than until their node is lost; and rolling
restarts, scaling, stops and starts, cordons, sometimes with such a kill in the middle. What must hold:

* a process of an instance dies only by a fault that was its own, its machine's, when its node was lost, or
  when it was replaced;
* there are two of one instance only while the node of one is not heard of, or while it is replaced;
* all are back after each fault, and at the end nothing runs but what should;
* each event of a session comes once and in order, each turn is answered or reported; only what was on a node
  that was given up is lost, and its client is told so;
* no process ever has more than `max_sessions` at once, as it counts itself.
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
from pathlib import Path
from statistics import median
from typing import Any

import trio
from attrs import frozen

from agentmgr.client import ManagerClient
from agentmgr.core.affinity import named_node
from agentmgr.errors import AgentManagerError
from agentmgr.models import OnCrash, OnManagerDeath, ServiceConfig
from agentmgr.models.nodes import NodeState, OnNodeLoss
from agentmgr.supervisor import procfs
from tests.faults.machines import HEAD, LOST_AFTER_S, Machines
from tests.faults.talkers import AGENT, Kills, Talker
from tests.faults.visitors import SERVER, Visitor, peaks
from tests.processes import alive

MARK = """
import json, os
from pathlib import Path

# Shows the test that it runs, wherever that is.
started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
mark = {"pid": os.getpid(), "started": started, "instance": os.environ["AGENTMGR_INSTANCE_ID"]}
Path(MARKS, f"{os.getpid()}.json").write_text(json.dumps(mark))
"""
TALKS, STRICT, LIMITED = "talks", "strict", "limited"
SEATS = 4
"""Of each instance of `limited`."""
UNHEARD_S = 20.0
"""After its node is heard of again, what was replaced meanwhile has ended so soon: it drains for 5 s."""
PATIENCE_S = 90.0
COMMAND_S = 60.0


@frozen
class Seen:
    """A process of an instance, as the manager has shown it."""

    node: str
    what: str


def _lives(pid: int, started: int, instance: str) -> bool:
    """Not: whether another process has its pid now, which is to be neither counted nor killed."""
    stat = procfs.stat(pid)
    return stat is not None and stat.lives and stat.start_ticks == started


class Run:
    """One run: what is done, what is seen, and what should not be."""

    def __init__(self, machines: Machines, draw: random.Random) -> None:
        self.machines, self._draw = machines, draw
        self.count: Counter[str] = Counter()
        self.faults: list[str] = []
        self.whole_after: dict[str, list[float]] = {}  #: seconds, by the kind of fault
        self._marks = machines.directory / "marks"
        self.kills = Kills()
        self.peaks: list[int] = []  #: of sessions at `limited`, of each of its processes
        self.expected = {TALKS: 2 * len(machines.names), STRICT: 2, LIMITED: 2}
        self._ids: dict[str, str] = {}  # of services, by name
        self._node_names: dict[str, str] = {}  # by id
        self._cordoned: str | None = None
        self._seen: dict[int, Seen] = {}
        self._explained: set[int] = set()  # pids that may be gone
        self._replaced: set[int] = set()  # those that a command replaces: they end, and not at once
        self._changing: str | None = None  # the service that a command changes
        self._unheard_until: dict[str, float] = {}  # by node: what ran there may be there twice
        self._losses = Counter[str]()  # that the managers have written down, by node
        self._ends_strict_until: dict[str, float] = {}  # by node
        self._manager_name = ""

    async def begin(self) -> None:
        self._marks.mkdir()
        place = self.machines.directory / "agent"
        place.mkdir()
        marks = repr(str(self._marks))
        (place / "agent.py").write_text(MARK.replace("MARKS", marks) + AGENT)
        (place / "limited.py").write_text(MARK.replace("MARKS", marks) + SERVER.replace("MARKS", marks))
        await self.machines.begin()
        config = {"restart_delay": 0.1, "restart_delay_max": 1, "max_restart_count": 10**6, "stop_timeout": 5}
        agent: dict[str, Any] = {"agent_factory_path": str(place / "agent.py")}
        server = {"command": (sys.executable, str(place / "limited.py"), "{port}")}
        services: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            TALKS: (agent, {"drain_timeout": 5, "session_idle": 1, "max_turn_attempts": 100,
                            "on_crash": self._draw.choice(list(OnCrash))}),
            STRICT: (agent, {"on_node_loss": OnNodeLoss.WAIT, "on_manager_death": OnManagerDeath.DIE}),
            LIMITED: (server, {"drain_timeout": 2, "max_sessions": SEATS}),
        }  # fmt: skip
        async with self.machines.client() as manager:
            nodes = await manager.list_nodes()
            self._manager_name = nodes[0].name
            self._node_names = {it.node_id: it.name for it in nodes}
            for name, (what, chosen) in services.items():
                settings = ServiceConfig(instances=self.expected[name], **config, **chosen)
                self._ids[name] = (await manager.register_service(name, **what, config=settings)).service_id
                await manager.start_service(name)

    def urls(self, service: str) -> list[str]:
        return [f"{url}/services/{service}" for url in self.machines.urls]

    def may_lose(self, session_id: str) -> bool:
        self._hear_of_losses()
        return self._is_unheard(self._node_names[named_node(session_id) or ""])

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
        self.kills.under_way = any(map(self._is_unheard, self._unheard_until))
        for it in await self.machines.instances() or ():
            if it.pid and it.status == "running":
                node = HEAD if it.node in ("", self._manager_name) else it.node
                self._seen[it.pid] = Seen(node, f"{it.service_id}/{it.slot}")
        dead = [pid for pid in self._seen if not alive(pid)]
        self._hear_of_losses()
        for pid in dead:
            seen = self._seen.pop(pid)
            if pid not in self._explained and not self._may_end(seen):
                self.faults.append(f"pid {pid} of {seen.what} on {seen.node} died, and nothing explains it")
        self._look_for_two()

    def _hear_of_losses(self) -> None:
        """Also of one that was over between two looks: the managers write down each before they act on it."""
        log = self.machines.log(HEAD).read_text()
        for node in self.machines.names:
            if (losses := log.count(f"node {node} is lost")) > self._losses[node]:
                self._losses[node] = losses
                self._not_heard(node)

    def _may_end(self, seen: Seen) -> bool:
        ended = trio.current_time() < self._ends_strict_until.get(seen.node, 0.0)
        return (
            self._is(seen, self._changing)
            or self._is_unheard(seen.node)
            or (ended and self._is(seen, STRICT))
        )

    def _look_for_two(self) -> None:
        of: dict[str, list[int]] = {}
        for pid, instance in self.living().items():
            seen = self._seen.get(pid)
            if pid not in self._replaced and not (seen and self._is(seen, self._changing)):
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
            (2, self.suspend_a_daemon), (2, self.restart), (2, self.scale), (1, self.stop_and_start),
            (2, self.cordon_or_uncordon),
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
            await self.reach_all_nodes()

    async def whole(self, after: str) -> None:
        await self._uncordon()
        try:
            await self.machines.until(lambda: self.machines.are_whole(self.expected))
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
        if not self._is_unheard(node):
            self.kills.so_far += 1
        self.kills.under_way = True
        self._unheard_until[node] = trio.current_time() + seconds + UNHEARD_S

    async def kill_an_instance(self) -> None:
        if pids := sorted(self.living()):
            pid = self._draw.choice(pids)
            self.kills.so_far += 1
            self._explained.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def kill_a_daemon(self, pause_s: float | None = None) -> None:
        """For less time than until its node is lost; `strict` dies with it all the same."""
        node = self._a_node()
        if pause_s is not None:
            self._not_heard(node, pause_s)
        self._ends_strict(node, pause_s or 0.0)
        await self.machines.kill(node)
        await trio.sleep(self._draw.uniform(0, 1.5) if pause_s is None else pause_s)
        await self.machines.start_daemon(node)

    async def kill_a_daemon_for_long(self) -> None:
        await self.kill_a_daemon(LOST_AFTER_S + self._draw.uniform(1, 6))

    async def kill_the_manager(self) -> None:
        self._ends_strict(HEAD)
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

    def _ends_strict(self, node: str, seconds: float = 0.0) -> None:
        """Its instances of `strict` end with its daemon, also one that the manager has not shown yet."""
        self._ends_strict_until[node] = trio.current_time() + seconds + UNHEARD_S

    def _is(self, seen: Seen, service: str | None) -> bool:
        return service is not None and seen.what.startswith(self._ids[service])

    # What is asked of the manager

    async def restart(self) -> None:
        service = self._draw.choice(list(self.expected))
        await self._ask(service, lambda manager: manager.restart_service(service))

    async def scale(self) -> None:
        await self._scale(self._draw.randint(4, 8))

    async def _scale(self, instances: int) -> None:
        await self._ask(TALKS, lambda manager: manager.scale_service(TALKS, instances))

    async def stop_and_start(self) -> None:
        service, pause_s = self._draw.choice(list(self.expected)), self._draw.uniform(0, 0.5)

        async def stop(manager: ManagerClient) -> None:
            await manager.stop_service(service)
            await trio.sleep(pause_s)

        await self._ask(service, stop)

    async def cordon_or_uncordon(self) -> None:
        if self._cordoned is not None:
            await self._uncordon()
            return
        self._cordoned = self._a_node()
        async with self.machines.client() as manager:
            await manager.cordon_node(self._cordoned)

    async def _uncordon(self) -> None:
        if self._cordoned is not None:
            async with self.machines.client() as manager:
                await manager.cordon_node(self._cordoned, cordoned=False)
            self._cordoned = None

    async def _ask(self, service: str, command: Callable[[ManagerClient], Awaitable[object]]) -> None:
        """Sometimes with a kill in the middle. Returns when what it replaces is known."""
        kills = [self.kill_an_instance, self.kill_a_daemon, self.kill_the_manager, self.kill_a_gateway]
        kill = self._draw.choice(kills) if self._draw.random() < 0.4 else None
        after_s = self._draw.uniform(0, 1.5)
        self._changing = service
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._command, command)
            if kill is not None:
                await trio.sleep(after_s)
                self.count[f"{kill.__name__.replace('_', ' ')}, while a command ran"] += 1
                await kill()
        async with self.machines.client() as manager:
            await manager.start_service(service)  # it may have been stopped, and the command was cut off
            self.expected[service] = (await manager.get_service(service)).config.instances
        await self.whole(f"a command for {service}")
        shown = {it.pid for it in await self.machines.instances() or ()}
        here = {pid for pid, it in self._seen.items() if self._is(it, service)}
        self._replaced |= here - shown
        self._explained |= self._replaced
        self._changing = None

    async def _command(self, command: Callable[[ManagerClient], Awaitable[object]]) -> None:
        try:
            with trio.fail_after(COMMAND_S):
                async with self.machines.client() as manager:
                    await command(manager)
        except (AgentManagerError, OSError, trio.TooSlowError) as refused:  # it met another fault
            self.count[f"commands refused: {type(refused).__name__}"] += 1

    async def reach_all_nodes(self) -> None:
        """A session waits at its node for an instance of its service: sees that each node has one."""
        while True:
            without = set(self._node_names.values())
            for it in await self.machines.instances() or ():
                if it.service_id == self._ids[TALKS]:
                    without.discard(it.node or self._manager_name)
            if not without:
                return
            self.count["scaled up, as sessions waited at a node without an instance"] += 1
            await self._scale(self.expected[TALKS] + len(without))

    async def check_end(self, visitors: list[Visitor], talkers: list[Talker]) -> None:
        """All is mended: each client is answered, and soon what runs is what the manager shows."""
        await self.whole("the end")
        await self.reach_all_nodes()
        for talker in talkers:
            talker.finish()
        before = [visitor.answered for visitor in visitors]

        def unanswered() -> list[int]:
            return [it.number for it, then in zip(visitors, before, strict=True) if it.answered <= then]

        with trio.move_on_after(PATIENCE_S):
            while unanswered():  # noqa: ASYNC110  # clients have no event for each answer
                await trio.sleep(0.1)
        if unanswered():
            self.faults.append(f"visitors {unanswered()} are not answered any more")
        shown, there = set[int | None](), set[int]()
        with trio.move_on_after(UNHEARD_S):
            while not shown or shown != there:  # what was replaced drains
                await trio.sleep(0.1)
                shown = {it.pid for it in await self.machines.instances() or ()}
                there = set(self.living())
        if shown != there:
            self.faults.append(f"orphans {sorted(there - shown)}, missing {sorted(shown - there)}")
        self.peaks = peaks(self._marks)
        if (most := max(self.peaks, default=0)) > SEATS:
            self.faults.append(f"an instance with {SEATS} seats had {most} sessions at once")


async def run_faults(
    directory: Path,
    draw: random.Random,
    *,
    seconds: float,
    clients: int,
    nodes: int,
    gateways: str,
) -> tuple[Run, list[Talker], list[Visitor]]:
    run = Run(Machines(directory, nodes, gateways), draw)
    talkers: list[Talker] = []
    visitors = [Visitor(number) for number in range(clients)]
    try:
        await run.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.watch)
            await run.whole("the start")
            for visitor in visitors:
                own = random.Random(draw.random())
                nursery.start_soon(visitor.run, run.urls(LIMITED), own, run.count, run.faults)
            async with trio.open_nursery() as conversations:
                for number in range(clients):
                    talker = Talker(
                        number, run.urls(TALKS), random.Random(draw.random()), run.count, run.kills,
                        eager=draw.random() < 0.2, may_lose=run.may_lose,
                    )  # fmt: skip
                    talkers.append(talker)
                    conversations.start_soon(talker.run)
                with trio.move_on_after(seconds):
                    while True:
                        with trio.CancelScope(shield=True):
                            await run.one()
                        await trio.sleep(draw.uniform(0, 2))
                await run.check_end(visitors, talkers)
            async with trio.open_nursery() as again:
                for talker in talkers:
                    if not talker.faults:
                        again.start_soon(talker.check_again)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            left = await run.machines.end()
    if left:
        run.faults.append(f"left over after the end: {left}")
    run.faults += [fault for talker in talkers for fault in talker.faults]
    return run, talkers, visitors


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

        async def run() -> tuple[Run, list[Talker], list[Visitor]]:
            return await run_faults(
                directory, random.Random(args.seed), seconds=args.seconds, clients=args.clients,
                nodes=args.nodes, gateways=args.gateways,
            )  # fmt: skip

        done, talkers, visitors = trio.run(run)
    for name, number in sorted(done.count.items()):
        took = done.whole_after.get(name)
        after = f"; whole after {median(took):.1f} s, at most {max(took):.1f} s" if took else ""
        print(f"{number:8}  {name}{after}")
    print(f"{sum(it.answered for it in visitors):8}  answers in {sum(it.visits for it in visitors)} visits")
    peak = max(done.peaks, default=0)
    print(f"{peak:8}  sessions at once at most, at instances with {SEATS} seats; {len(done.peaks)} processes")
    for kind, longest in (
        ("talkers without an event", sorted(it.longest_s for it in talkers)),
        ("visitors without an answer", sorted(it.longest_s for it in visitors)),
    ):
        print(f"{median(longest):8.1f}  s {kind} in the median, at most {longest[-1]:.1f} s")
    for fault in done.faults:
        print(f"FAULT: {fault}")
    print(f"{len(done.faults):8}  faults; {time.monotonic() - begin:.0f} s")
    sys.exit(bool(done.faults))


if __name__ == "__main__":
    main()
