"""What 100 machines with 100 instances each and 100,000 sessions cost one manager. It asserts nothing.

    python tests/benchmarks/bench_hundred.py [--nodes 100] [--instances 100] [--sessions 1000] [--only idle,…]
    python tests/benchmarks/bench_hundred.py --nodes 10 --instances 10 --sessions 100        # in two minutes

The manager is the real command, a process of its own, with its SQLite file. Four other processes play the
machines (`fake_nodes.py`): real daemons and the real protocols over real TLS; only agents and clients are
missing. Half of the services have `--max-sessions`. CPU is the manager's own, from `/proc`, so that other
work on the machine disturbs little; delays and times are not that robust. Exits with 1 where something did
not come to its end in time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import Factory, define

from agentmgr.client import ManagerClient
from agentmgr.client.http import request
from agentmgr.dialing import DIAL_S
from agentmgr.errors import AgentManagerError
from agentmgr.link import SILENCE_S
from agentmgr.models import ServiceConfig
from agentmgr.process.paths import RuntimePaths
from agentmgr.worker.pidfile import living

_PATIENCE_S = 600.0
_LOOK_S = 0.25
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CRASHES = 20
_BUSY = 0.1  #: a message of each session in ten seconds


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def row(what: str, found: str) -> None:
    print(f"| {what} | {found} |", flush=True)


class Manager:
    """The process of the manager, one after the other."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.database = directory / "bench.db"
        self.port = free_port()
        self._words = [
            sys.executable, *options.python, "-m", "agentmgr", "daemon", "--db-path", str(self.database),
            "--cluster", "joined", "--cluster-host", "127.0.0.1", "--cluster-port", str(self.port),
            "--gateways", "all", "--proxy-port", str(free_port()), "--api-port", "0",
        ]  # fmt: skip
        self._log = directory / "manager.log"
        self.process: subprocess.Popen[bytes]
        self.client = ManagerClient(RuntimePaths.of(self.database).control_socket, timeout_s=_PATIENCE_S)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=log)

    async def answers(self) -> None:
        """Returns when it does."""
        with trio.fail_after(_PATIENCE_S):
            while True:
                with suppress(AgentManagerError, OSError):
                    await self.client.get_info()
                    return
                if self.process.poll() is not None:
                    raise SystemExit(f"the manager has ended: {self._log.read_text()[-2000:]}")
                await trio.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Of it and its gateway, which outlives it."""
        self.kill()
        for worker in living(RuntimePaths.of(self.database).workers):
            os.kill(worker.pid, signal.SIGKILL)

    @property
    def cpu_s(self) -> float:
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICKS_PER_S

    @property
    def memory_mib(self) -> float:
        """Proportional set size."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
        return 0.0

    @property
    def database_mb(self) -> float:
        files = self.database.parent.glob("bench.db*")
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

    async def pages(self, path: str) -> int:
        """Reads all pages of a list; returns how many bytes these are."""
        size, cursor = 0, ""
        while True:
            answer = await self.client._answer("GET", f"{path}{cursor}")
            size += len(answer)
            if not (cursor := json.loads(answer).get("next_cursor") or ""):
                return size
            cursor = f"{'&' if '?' in path else '?'}cursor={cursor}"

    async def get(self, path: str) -> None:
        target = RuntimePaths.of(self.database).control_socket
        async with request(target, "GET", path, headers={}) as response:
            assert not response.is_error, path
            await response.read()


class Player:
    """One process of `fake_nodes.py`."""

    def __init__(self, process: trio.Process) -> None:
        self._process, self._rest = process, b""
        self._lock = trio.Lock()

    async def do(self, name: str, **arguments: Any) -> Any:
        async with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            await self._process.stdin.send_all(json.dumps([name, arguments]).encode() + b"\n")
            while b"\n" not in self._rest:
                if not (data := await self._process.stdout.receive_some()):
                    raise SystemExit("a process that plays machines has ended")
                self._rest += data
            line, _, self._rest = self._rest.partition(b"\n")
            return json.loads(line)


@define
class Sums:
    """Of all players."""

    counts: Counter[str]
    traffic: Counter[str]
    oldest: int  #: the version of the table that the last gateway has
    newest: int


@define
class Spent:
    """What a part of the trial has taken."""

    began: float = Factory(trio.current_time)
    seconds: float = 0.0
    cpu_s: float = 0.0
    traffic: Counter[str] = Factory(Counter)
    grants: list[float] = Factory(list)

    @property
    def share(self) -> str:
        return f"{self.cpu_s / self.seconds:.1%} of a core"

    @property
    def bytes_per_s(self) -> str:
        to, of = (
            sum(count for name, count in self.traffic.items() if name.startswith(way)) / self.seconds
            for way in ("to_", "from_")
        )
        return f"{to / 1e3:.0f} kB/s sent, {of / 1e3:.0f} kB/s received"

    @property
    def delay(self) -> str:
        if len(self.grants) < 2:
            return "no seat was asked for"
        cuts = statistics.quantiles(self.grants, n=100)
        return f"a seat comes after {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.0f} ms"


class Trial:
    def __init__(self, options: argparse.Namespace, manager: Manager, players: list[Player]) -> None:
        self.options, self.manager, self.players = options, manager, players
        self.services = [f"s{number:04}" for number in range(options.services)]
        self.instances: int = options.nodes * options.instances  #: that are to run
        self.names = [f"n{number:03}" for number in range(options.nodes)]
        self.grants: list[float] = []  #: seconds from a question for a seat to its answer

    async def all_do(self, name: str, **arguments: Any) -> list[Any]:
        found: dict[int, Any] = {}

        async def do(number: int, player: Player) -> None:
            found[number] = await player.do(name, **arguments)

        async with trio.open_nursery() as nursery:
            for number, player in enumerate(self.players):
                nursery.start_soon(do, number, player)
        return [found[number] for number in sorted(found)]

    async def sums(self) -> Sums:
        sums = Sums(Counter(), Counter(), sys.maxsize, 0)
        for figures in await self.all_do("figures"):
            sums.traffic.update(figures.pop("traffic"))
            self.grants += figures.pop("grants")
            sums.oldest = min(sums.oldest, figures.pop("tables_at"), figures["routable"] and sys.maxsize)
            sums.newest = max(sums.newest, figures.pop("version"))
            sums.counts.update({name: value for name, value in figures.items() if name != "routable"})
            sums.counts["routable"] = figures["routable"]
        return sums

    @asynccontextmanager
    async def spent(self) -> AsyncIterator[Spent]:
        spent, before = Spent(), await self.sums()
        self.grants.clear()
        began, cpu_s = time.monotonic(), self.manager.cpu_s
        yield spent
        spent.seconds, spent.cpu_s = time.monotonic() - began, self.manager.cpu_s - cpu_s
        after = await self.sums()
        spent.traffic, spent.grants = after.traffic - before.traffic, list(self.grants)

    async def until(self, what: str, holds: Callable[[Sums], bool]) -> Sums:
        """Looks until it does; exits where it does not in time."""
        with trio.move_on_after(_PATIENCE_S):
            while True:
                if holds(found := await self.sums()):
                    return found
                await trio.sleep(_LOOK_S)
        print(f"not within {_PATIENCE_S:.0f} s: {what}; {found}", file=sys.stderr)
        raise SystemExit(1)

    async def all_routable(self) -> None:
        def holds(sums: Sums) -> bool:
            counts = sums.counts
            return counts["routable"] == counts["instances"] == self.instances and sums.oldest == sums.newest

        await self.until(f"{self.instances} instances run, and all gateways know it", holds)

    async def all_linked(self) -> None:
        count = len(self.names)
        await self.until(
            "all nodes and gateways are linked",
            lambda sums: sums.counts["nodes"] == sums.counts["gateways"] == count,
        )

    async def clients(self, count: int, per_s: float, *, churn: bool = False, busy: float = 0.0) -> None:
        share = per_s / len(self.players)
        await self.all_do("clients", count=count, per_s=share, churn=churn, busy=busy)

    async def settle(self) -> None:
        """What the part before has left to do is not the next one's."""
        await trio.sleep(min(15.0, self.options.seconds / 2))

    # The parts, in their order

    async def join(self) -> None:
        """Machines join and link, each with its gateway."""
        invitation = await self.manager.client.invite_nodes(uses=len(self.names), expires_in_s=3600)
        share = -(-len(self.names) // len(self.players))
        async with self.spent() as spent:
            async with trio.open_nursery() as nursery:
                for number, player in enumerate(self.players):
                    some = self.names[number * share : (number + 1) * share]
                    addresses = {
                        name: f"127.9.{1 + int(name[1:]) // 200}.{2 + int(name[1:]) % 200}" for name in some
                    }
                    nursery.start_soon(
                        partial(
                            player.do, "join", manager=["127.0.0.1", self.manager.port],
                            secret=invitation.secret, nodes=addresses, services=self.services,
                        )
                    )  # fmt: skip
            await self.all_linked()
        row(
            f"{len(self.names)} nodes join and link, with a gateway each",
            f"{spent.seconds:.1f} s, {spent.cpu_s:.2f} s CPU",
        )

    async def start(self) -> None:
        """All instances of all services start."""
        each, more = divmod(self.instances, len(self.services))
        for number, name in enumerate(self.services):
            config = ServiceConfig(
                command=("server", "{port}"),
                instances=each + (number < more),
                place_on=("bench=1",),
                max_sessions=self.options.sessions * 2 // self.options.instances + 5 if number % 2 else 0,
                restart_delay=0.1,
            )
            await self.manager.client.register_service(name, config=config)
        before = await self.sums()
        async with self.spent() as spent:
            async with trio.open_nursery() as nursery:
                for name in self.services:
                    nursery.start_soon(partial(self.manager.client.start_service, name, wait=False))
            await self.all_routable()
        tables = await self.sums()
        row(
            f"{self.instances:,} instances start",
            f"{spent.seconds:.1f} s, {spent.cpu_s:.1f} s CPU, {tables.newest - before.newest} tables, "
            f"{spent.traffic['to_gateways'] / 1e6:.0f} MB to gateways, "
            f"{(spent.traffic['to_nodes'] + spent.traffic['from_nodes']) / 1e6:.0f} MB with nodes",
        )

    async def idle(self) -> None:
        """All run, and no client is there."""
        await self.settle()
        async with self.spent() as spent:
            await trio.sleep(self.options.seconds)
        row(f"{self.instances:,} instances at rest", f"{spent.share}, {spent.bytes_per_s}")
        row("memory then", f"{self.manager.memory_mib:.0f} MiB")

    async def change(self) -> None:
        """One instance crashes, and is back, with no other change."""
        waits, delays, count = [], [], min(_CRASHES, self.instances // 2)
        async with self.spent() as rest:
            await trio.sleep(min(5.0, self.options.seconds))
        async with self.spent() as spent:
            for number in range(count):
                version = (await self.sums()).newest
                player = self.players[number % len(self.players)]
                names = self._of(player)
                began = await player.do("crash", node=names[number % len(names)], instances=1)
                await trio.sleep(0.5)
                applied = await self.all_do("applied")
                news = {key for part in applied for key in part if int(key) > version}
                if news:
                    first = min(news, key=int)
                    times = [at for part in applied for at in part.get(first, ())]
                    waits.append(min(times) - began)
                    delays.append(max(times) - began)
                await self.all_routable()
        cpu_s = (spent.cpu_s - rest.cpu_s / rest.seconds * spent.seconds) / count
        row(
            f"an instance crashes and is back, median of {count}",
            f"{cpu_s * 1e3:.1f} ms CPU; the first gateway knows after {statistics.median(waits) * 1e3:.0f} "
            f"ms, the last after {statistics.median(delays) * 1e3:.0f}",
        )

    def _of(self, player: Player) -> list[str]:
        share = -(-len(self.names) // len(self.players))
        number = self.players.index(player)
        return self.names[number * share : (number + 1) * share]

    async def come(self) -> None:
        """All sessions come within a minute."""
        await self._come("come")

    async def _come(self, what: str) -> None:
        within_s = self.options.minute
        total = len(self.names) * self.options.sessions
        async with self.spent() as spent:
            await self.clients(self.options.sessions, total / within_s)
            await self.until("all sessions are open", lambda sums: sums.counts["sessions"] >= total)
        row(
            f"{total:,} sessions {what}, {total / within_s:,.0f} a second",
            f"{spent.seconds:.0f} s, {spent.share}; {spent.delay}; {spent.bytes_per_s}",
        )
        row("memory then", f"{self.manager.memory_mib:.0f} MiB")

    async def churn(self) -> None:
        """Sessions of ten minutes each come and go; then each has a message in ten seconds as well."""
        total, seconds = len(self.names) * self.options.sessions, self.options.seconds
        for busy, what in ((0.0, ""), (_BUSY, ", each with a message in 10 s")):
            await self.clients(self.options.sessions, total / 600, churn=True, busy=busy)
            await self.settle()
            size = self.manager.database_mb
            async with self.spent() as spent:
                await trio.sleep(seconds)
            grown = (self.manager.database_mb - size) / spent.seconds * 3600
            row(
                f"{total / 600:.0f} sessions a second come and go{what}",
                f"{spent.share}; {spent.delay}; {spent.bytes_per_s}; SQLite grows {grown:.0f} MB an hour",
            )

    async def ask(self) -> None:
        """What people ask, while the sessions come and go."""
        questions: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("`GET /services`", partial(self.manager.pages, "/services")),
            ("`GET /services/NAME`", partial(self.manager.pages, f"/services/{self.services[0]}")),
            ("`GET /nodes`", partial(self.manager.pages, "/nodes")),
            ("`GET /connections`", partial(self.manager.pages, "/connections?limit=1000")),
            ("`GET /metrics`", partial(self.manager.get, "/metrics")),
            ("`agentmgr list`", partial(self._command, "list")),
            ("`agentmgr status NAME`", partial(self._command, "status", self.services[0])),
            ("`agentmgr nodes`", partial(self._command, "nodes")),
            ("`agentmgr stats`", partial(self._command, "stats")),
            ("`agentmgr doctor`", partial(self._command, "doctor")),
        ]
        for name, asked in questions:
            taken, cpu = [], []
            held_up = 0.0
            for _ in range(3):
                async with self._held_up() as longest:
                    began, cpu_s = time.monotonic(), self.manager.cpu_s
                    await asked()
                    taken.append(time.monotonic() - began)
                    cpu.append(self.manager.cpu_s - cpu_s)
                held_up = max(held_up, *longest)
            row(
                name,
                f"{statistics.median(taken) * 1e3:.0f} ms, {statistics.median(cpu) * 1e3:.0f} ms CPU; "
                f"holds others up for {held_up * 1e3:.0f} ms",
            )
        await self._console()

    async def _command(self, *words: str) -> None:
        command = [
            sys.executable,
            "-m",
            "agentmgr",
            words[0],
            "--db-path",
            str(self.manager.database),
            *words[1:],
        ]
        await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)

    @asynccontextmanager
    async def _held_up(self) -> AsyncIterator[list[float]]:
        """How long a small question takes meanwhile, at most."""
        longest = [0.0]

        async def ask() -> None:
            while True:
                began = time.monotonic()
                await self.manager.get("/health")
                longest[0] = max(longest[0], time.monotonic() - began)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            yield longest
            await trio.sleep(0.02)
            nursery.cancel_scope.cancel()

    async def _console(self) -> None:
        async with self.spent() as rest:
            await trio.sleep(min(5.0, self.options.seconds))
        async with self.manager.client.samples(["overview", "services"]) as samples:
            await anext(samples)
            async with self.spent() as spent:
                for _ in range(10):
                    await anext(samples)
        more = spent.cpu_s / spent.seconds - rest.cpu_s / rest.seconds
        row("a viewer of the console", f"{more:.1%} of a core")

    async def restart(self) -> None:
        """Rolling, of one service, with its sessions."""
        async with self.spent() as rest:
            await trio.sleep(min(5.0, self.options.seconds))
        async with self.spent() as spent:
            await self.manager.client.restart_service(self.services[0])
            await self.all_routable()
        cpu_s = spent.cpu_s - rest.cpu_s / rest.seconds * spent.seconds
        count = self.instances // len(self.services)
        row(
            f"rolling restart of a service of {count}",
            f"{spent.seconds:.1f} s, {cpu_s:.1f} s CPU more than at rest, "
            f"{spent.traffic['to_gateways'] / 1e6:.1f} MB to gateways",
        )

    async def kill(self) -> None:
        """The manager is killed, and started again."""
        self.manager.kill()
        before = await self.sums()
        total = before.counts["sessions"] + before.counts["waiting"]
        began = time.monotonic()
        self.manager.start()
        async with self.spent() as spent:
            await self.manager.answers()
            answers = time.monotonic() - began
            await self.all_linked()
            await self.all_routable()
            routed = time.monotonic() - began
            await self._connections(total)
        row(
            "the manager is killed and started again",
            f"answers after {answers:.1f} s; {self.instances:,} adopted, and all gateways have its table, "
            f"after {routed:.1f} s; all sessions known after {spent.seconds:.1f} s, {spent.cpu_s:.1f} s CPU",
        )
        row("memory then", f"{self.manager.memory_mib:.0f} MiB")

    async def _connections(self, total: int) -> None:
        """Returns when the manager knows so many."""
        with trio.move_on_after(60):
            while (await self.manager.client.get_connection_stats())["total_connections"] < total * 0.99:  # noqa: ASYNC110
                await trio.sleep(0.5)

    async def cut(self) -> None:
        """The manager stands still for as long as it takes all others to give it up, and to dial in vain."""
        seconds = SILENCE_S + 3 * DIAL_S
        os.kill(self.manager.process.pid, signal.SIGSTOP)
        await trio.sleep(seconds)
        os.kill(self.manager.process.pid, signal.SIGCONT)
        async with self.spent() as spent:
            await self.all_linked()
            linked = trio.current_time()
            await self.all_routable()
        row(
            f"all links are cut at once, for {seconds:.0f} s",
            f"all are linked again after {linked - spent.began:.1f} s, and all gateways have the table after "
            f"{spent.seconds:.1f} s, {spent.cpu_s:.1f} s CPU",
        )

    async def lose(self) -> None:
        """A machine loses its power."""
        name = self.names[-1]
        player = next(it for it in self.players if name in self._of(it))
        async with self.spent() as rest:
            await trio.sleep(min(5.0, self.options.seconds))
        async with self.spent() as spent:
            lost = await player.do("lose", node=name)
            self.names.remove(name)
            await self.all_routable()
        cpu_s = spent.cpu_s - rest.cpu_s / rest.seconds * spent.seconds
        row(
            f"a node with {lost} instances is lost (after 15 s of silence)",
            f"all run elsewhere after {spent.seconds:.1f} s, {cpu_s:.2f} s CPU more than at rest",
        )

    async def back(self) -> None:
        """All sessions end at once, and come back within a minute."""
        await self.clients(0, 0.0)
        await self.until("all sessions have ended", lambda sums: not sums.counts["sessions"])
        await self.settle()
        await self._come("come back")

    async def size(self) -> None:
        row("the database", f"{self.manager.database_mb:.1f} MB")


PARTS = ("idle", "change", "come", "churn", "ask", "restart", "cut", "kill", "lose", "back", "size")


@contextmanager
def directories(given: str | None) -> Iterator[tuple[Path, Path]]:
    """Of the manager, and of the machines: these write much more there than one machine would."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=given) as one,
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as other,
    ):
        yield Path(one), Path(other)


async def main(options: argparse.Namespace) -> None:
    with directories(options.directory) as (directory, machines):
        manager = Manager(directory, options)
        try:
            manager.start()
            await manager.answers()
            async with trio.open_nursery() as nursery:
                players = []
                for number in range(options.players):
                    script = Path(__file__).with_name("fake_nodes.py")
                    command = [sys.executable, str(script), str(machines / str(number))]
                    start = partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                    players.append(Player(await nursery.start(start)))
                trial = Trial(options, manager, players)
                for name in ("join", "start", *options.only.split(",")):
                    began = time.monotonic()
                    await getattr(trial, name)()
                    if options.times:
                        print(f"({name}: {time.monotonic() - began:.0f} s)", file=sys.stderr)
                nursery.cancel_scope.cancel()
        finally:
            manager.end()
            if options.keep_log:
                Path(options.keep_log).write_bytes(manager._log.read_bytes())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--instances", type=int, default=100, help="on each node")
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=1000, help="at each gateway")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each figure that is a rate")
    parser.add_argument("--minute", type=float, default=60.0, help="seconds in which all sessions come")
    parser.add_argument("--players", type=int, default=4, help="processes that play the machines")
    parser.add_argument("--only", default=",".join(PARTS), help="which, with commas, in this order")
    parser.add_argument("--directory", help="of the database")
    parser.add_argument("--python", action="append", default=[], help="options of the manager's Python")
    parser.add_argument("--keep-log", metavar="FILE", help="write the manager's log there at the end")
    parser.add_argument("--times", action="store_true", help="say what each part took")
    return parser.parse_args()


if __name__ == "__main__":
    trio.run(main, parse())
