"""Does the number of instances rest while the load does? A service with a range behind its gateway.

    python tests/benchmarks/bench_scaling.py [--by connections|turns] [--clients 21] [--seconds 300]

As many clients as `--clients` have one conversation after the other, each with turns of random length: who
leaves is followed by another at once. By connections the default is the worst case, as 21 clients are just
what 3 instances are for, and one more is there for a moment whenever one follows another. After `--seconds`
all leave but one.

Prints each change with its reason, how long turns took, and what manager and clients took. Exits with 1 where
an instance was ended while the load was constant, a turn was lost or a client was refused, or more than one
instance ran at the end. It takes 130 s more than `--seconds`.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from agentmgr import AgentManager, ServiceConfig
from agentmgr.client.session import open_session
from agentmgr.core.scaling import DOWN_AFTER_S
from agentmgr.models import Event

AGENT = """
import trio

def create_agent():
    async def answer(message):
        await trio.sleep(float(message))
        return message
    return answer
"""
CONVERSATION_S, TURN_S, PAUSE_S = (2.0, 20.0), (0.1, 1.5), (0.0, 1.0)


class Trial:
    def __init__(self, by: str, clients: int) -> None:
        self.by, self.clients = by, clients
        self.turn_times: list[float] = []
        self.lost: list[str] = []
        self.changes: list[tuple[float, int, int]] = []
        self.began = trio.current_time()

    @property
    def at(self) -> float:
        return trio.current_time() - self.began

    async def follow(self, manager: AgentManager) -> None:
        with manager.subscribe() as events:
            async for event in events:
                if event.kind == "service.scaled":
                    self.note(event)

    def note(self, event: Event) -> None:
        before, after = int(event.detail["from"] or 0), int(event.detail["to"] or 0)
        self.changes.append((self.at, before, after))
        print(f"| {self.at:6.1f} s | {before} → {after} | {event.detail['reason']} |", flush=True)

    async def converse(self, url: str, until: float) -> None:
        """One conversation after the other, up to that time."""
        while self.at < until:
            end = min(self.at + random.uniform(*CONVERSATION_S), until)
            try:
                async with open_session(url) as session:
                    while self.at < end:
                        begin, text = trio.current_time(), f"{random.uniform(*TURN_S):.3f}"
                        turn = await session.send(text)
                        if await turn.answer() != text:
                            self.lost.append(f"{self.at:.1f} s: another answer")
                        self.turn_times.append(trio.current_time() - begin - float(text))
                        await trio.sleep(random.uniform(*PAUSE_S))
            except Exception as error:  # each loss counts, and the load goes on
                self.lost.append(f"{self.at:.1f} s: {error!r}")
                await trio.sleep(0.2)

    async def run(self, directory: Path, seconds: float) -> int:
        (directory / "agent.py").write_text(AGENT)
        config = ServiceConfig(
            agent_factory_path=str(directory / "agent.py"),
            instances="1..6",
            max_sessions=10 if self.by == "connections" else 0,
        )
        async with AgentManager(directory / "m.db") as manager, trio.open_nursery() as nursery:
            await manager.register_service("web", config=config, auto_start=True)
            port = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=1))
            url = f"ws://localhost:{port}/services/web"
            nursery.start_soon(self.follow, manager)
            begin_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            async with trio.open_nursery() as load:
                for _ in range(self.clients - 1):
                    load.start_soon(self.converse, url, seconds)
                load.start_soon(self.converse, url, seconds + DOWN_AFTER_S + 10)
            used = (resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin_s) / self.at
            left = manager.get_service("web").wanted_instances
            nursery.cancel_scope.cancel()
        return self.judge(seconds, left, used)

    def judge(self, seconds: float, left: int, used: float) -> int:
        down = [change for change in self.changes if change[0] < seconds and change[2] < change[1]]
        up = [change for change in self.changes if change[0] < seconds and change[2] > change[1]]
        delay = statistics.quantiles(self.turn_times, n=100)
        print(f"{len(self.turn_times)} turns, {len(self.lost)} lost: {self.lost[:5]}")
        print(f"a turn took {delay[49] * 1e3:.0f} ms more than it slept, p99 {delay[98] * 1e3:.0f} ms")
        print(f"while the load was constant: {len(up)} times up, {len(down)} times down")
        print(f"instances at the end: {left}; manager and clients together: {used:.1%} of a core")
        return int(bool(down or self.lost or left != 1))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--by", choices=("connections", "turns"), default="connections")
    options.add_argument("--clients", type=int, default=21)
    options.add_argument("--seconds", type=float, default=300.0)
    given = options.parse_args()

    async def run(directory: Path) -> int:
        with trio.fail_after(given.seconds + DOWN_AFTER_S + 120):
            return await Trial(given.by, given.clients).run(directory, given.seconds)

    with tempfile.TemporaryDirectory() as directory:
        sys.exit(trio.run(run, Path(directory)))


if __name__ == "__main__":
    main()
