"""Many agents that start on demand from one file, of which clients use a few: who runs, and what that costs.

    python tests/benchmarks/bench_on_demand.py [--minutes 10] [--services 1000] [--awake 50] [--idle-stop 15]

Clients come at random to `--awake` of the `--services`, each for a few answers, to the end; then everything
is to fall asleep. Each client's session goes on with the next client of that service. Fails where a client
was refused, an answer is not the next one of its session, or one is not asleep at the end. Prints how many
instances ran, and how many services needed one: had a client within `--idle-stop` seconds; what clients
waited; the manager's share of a core, memory and descriptors.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import trio
from bench_starts import agentmgr, environment, manager_by_command, note, row
from bench_supervision import cpu_s, free_port, seconds_until_answer

from agentmgr.client import ManagerClient
from agentmgr.client.session import open_session
from agentmgr.process.paths import RuntimePaths
from agentmgr.supervisor import procfs

AGENT = """
async def agent(message, session):
    session.state["turns"] = session.state.get("turns", 0) + 1
    return str(session.state["turns"])

def create_agent():
    return agent
"""
SAMPLE_S = 5.0
PAUSE_S = 2.0  #: on average, between two clients of one service that come close together
SETTLES_S = 10.0  #: for the last to fall asleep, beyond `--idle-stop`


class Visits:
    """Clients of the services that are used, and what they have seen."""

    def __init__(self, port: int, names: list[str], idle_stop_s: float) -> None:
        self.port, self.names, self.idle_stop_s = port, names, idle_stop_s
        self.waits: list[float] = []  #: until the first answer of each client, in seconds
        self.faults: list[str] = []
        self.used_at: dict[str, float] = {}  #: when a client was there last
        self.connected: dict[str, int] = {}

    def needed(self, now: float) -> int:
        recent = {name for name, at in self.used_at.items() if now - at < self.idle_stop_s}
        return len(recent | self.connected.keys())

    async def of(self, name: str) -> None:
        """One client after the other, until cancelled."""
        session_id, turns = "", 0
        while True:
            # Now at once behind the one before, now when it may be asleep, now as it may be falling asleep.
            falls_asleep_s = self.idle_stop_s + random.uniform(-0.1, 0.3)
            pauses_s = [random.expovariate(1 / PAUSE_S), falls_asleep_s, 60 * random.random()]
            await trio.sleep(random.choice(pauses_s))
            begin = time.monotonic()
            self.connected[name] = 1
            try:
                with trio.fail_after(60):
                    where = f"ws://127.0.0.1:{self.port}/services/{name}"
                    async with open_session(where, session_id=session_id or None) as session:
                        for number in range(random.randint(1, 3)):
                            turns += 1
                            answer = str(await session.ask("?"))
                            if number == 0:
                                self.waits.append(time.monotonic() - begin)
                            if answer != str(turns):
                                self.faults.append(f"{name}: answer {answer} to turn {turns}")
                                turns = int(answer)
                        session_id = session.session_id
            except (Exception, trio.TooSlowError) as error:  # whatever it is, it is counted
                self.faults.append(f"{name}: {error!r}")
            finally:
                del self.connected[name]
                self.used_at[name] = time.monotonic()


async def measure(visits: Visits, home: Path, minutes: float, pid: int) -> None:
    running: list[tuple[int, int]] = []  # instances, and services that needed one
    async with ManagerClient(RuntimePaths.of(home / "m.db").control_socket) as manager:

        async def instances() -> int:
            found = (await manager.get_system_stats())["instances"]
            return int(found["total"])

        before, begin = cpu_s(pid), time.monotonic()
        async with trio.open_nursery() as nursery:
            for name in visits.names:
                nursery.start_soon(visits.of, name)
            with trio.move_on_after(60 * minutes):
                while True:
                    await trio.sleep(SAMPLE_S)
                    running.append((await instances(), visits.needed(time.monotonic())))
            share = (cpu_s(pid) - before) / (time.monotonic() - begin)
            nursery.cancel_scope.cancel()
        with suppress(trio.TooSlowError), trio.fail_after(visits.idle_stop_s + SETTLES_S):
            while await instances():  # noqa: ASYNC110  # nothing announces the last one
                await trio.sleep(0.5)
        left = await instances()
        asleep = int((await manager.get_system_stats())["services"]["asleep"])
    row(f"client → first answer, {len(visits.waits)} clients", visits.waits)
    slow = statistics.quantiles(visits.waits, n=100)[98]
    note("  99 of 100 within", f"{slow * 1e3:.0f} ms")
    ran, needed = (statistics.mean(each) for each in zip(*running, strict=True))
    most = max(count for count, _ in running)
    note(
        "instances that ran, on average; services that needed one",
        f"{ran:.1f} (at most {most}); {needed:.1f}",
    )
    note("the manager's share of a core meanwhile", f"{share * 100:.1f} %")
    note("asleep at the end; instances left", f"{asleep}; {left}")
    note("clients that were refused or answered wrongly", str(len(visits.faults)))
    for fault in visits.faults[:10]:
        print("   ", fault)
    if visits.faults or left:
        raise SystemExit("FAILED")


def at_rest(pid: int, seconds: float) -> str:
    before, begin = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    share = (cpu_s(pid) - before) / (time.monotonic() - begin)
    stat = procfs.stat(pid)
    assert stat is not None
    resident = stat.resident_pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return (
        f"{share * 100:.2f} % of a core, {resident:.1f} MiB, {len(os.listdir(f'/proc/{pid}/fd'))} descriptors"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--awake", type=int, default=50)
    parser.add_argument("--idle-stop", type=float, default=15)
    parser.add_argument("--rest", type=float, default=20, help="seconds to measure what is asleep")
    args = parser.parse_args()
    print(f"{args.services} services on demand, clients at {args.awake} of them, for {args.minutes:g} min\n")
    with tempfile.TemporaryDirectory() as directory:
        home, port = Path(directory), free_port()
        file = home / "agent.py"
        file.write_text(AGENT)
        with manager_by_command(home):
            names = [f"agent{number}" for number in range(args.services)]
            options = f'agent_factory_path = "agent.py"\nstart = "on-demand"\nidle_stop = {args.idle_stop}\n'
            (home / "services.toml").write_text("".join(f"[services.{name}]\n{options}" for name in names))
            begin = time.monotonic()
            agentmgr(home, "apply", "services.toml")
            note("apply, the manager's start included", f"{time.monotonic() - begin:.1f} s")
            pid = json.loads(agentmgr(home, "info", "--format", "json"))["manager"]["pid"]
            time.sleep(5)
            note("the manager, all asleep", at_rest(pid, args.rest))
            words = [sys.executable, "-m", "agentmgr", "proxy", "--port", str(port)]
            with subprocess.Popen(
                words, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as gateway:
                try:
                    seconds_until_answer(port)
                    visits = Visits(port, random.sample(names, args.awake), args.idle_stop)
                    trio.run(measure, visits, home, args.minutes, pid)
                    time.sleep(5)
                    note("the manager, all asleep again", at_rest(pid, args.rest))
                finally:
                    gateway.terminate()


if __name__ == "__main__":
    main()
