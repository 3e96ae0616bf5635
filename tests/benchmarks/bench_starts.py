"""How fast hosted agents start, come back and wake, and what they take: P7 and P14 of the figures.

    python tests/benchmarks/bench_starts.py [--rounds 4] [--agents 100] [--langgraph PYTHON] [--only crash]

Prints a table; asserts nothing. `AGENTMGR_FORK_SERVER=0` starts each agent as a process of its own: it takes
turns with the default, as do PM2 and supervisord where they are on the PATH, so that all see the same
machine.
`--langgraph`: an interpreter that has this package and LangGraph, by default this one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio
from bench_supervision import (
    PAUSE_S,
    SYSTEMS,
    Notices,
    ask,
    back,
    bare,
    cpu_s,
    free_port,
    manager,
    seconds_until_answer,
)

from agentmgr.client.session import open_session
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.supervisor import Supervisor, procfs

ROOT = Path(__file__).parents[2]
SWITCH = "AGENTMGR_FORK_SERVER"
ECHO = "async def agent(message):\n    return message\n"
GRAPH = (ROOT / "examples" / "langgraph_agent.py").read_text()
KINDS = {"forked": "1", "spawned": "0"}
FIGURES = ("start", "crash", "framework", "many", "asleep")
TERMINATED = (ServiceStatus.RUNNING, ServiceStatus.ERROR)


def row(what: str, times: Sequence[float], against: Sequence[float] = (), of: str = "") -> None:
    median = statistics.median(times)
    spread = f"{min(times) * 1e3:.1f} … {max(times) * 1e3:.1f}"
    ratio = f"{median / statistics.median(against):.2f} × {of}" if against else ""
    print(f"| {what:<58} | {median * 1e3:8.1f} ms | {spread:>17} | {ratio:<26} |", flush=True)


def note(what: str, found: str) -> None:
    print(f"| {what:<58} | {found} |", flush=True)


@contextmanager
def started_as(kind: str) -> Iterator[None]:
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = KINDS[kind]
    try:
        yield
    finally:
        del os.environ[SWITCH]
        if before is not None:
            os.environ[SWITCH] = before


class Agents:
    """A supervisor in this process, with agents of one file."""

    def __init__(self, supervisor: Supervisor, recorder: Notices, file: Path, python: str | None) -> None:
        self._supervisor, self._recorder = supervisor, recorder
        self._file, self._python = file, python
        self._count = 0

    async def start(self) -> tuple[ServiceSpec, float]:
        """A new service of the file, and the seconds until it was routable."""
        self._count += 1
        config = ServiceConfig(
            str(self._file), python=self._python, restart_delay=0, stable_after=0, startup_timeout=120
        )
        spec = ServiceSpec(f"agent{self._count}", config, desired_status=DesiredStatus.RUNNING)
        return spec, await self.start_again(spec)

    async def start_again(self, spec: ServiceSpec) -> float:
        begin = time.monotonic()
        await self._supervisor.start(spec)
        return time.monotonic() - begin

    async def stop(self, spec: ServiceSpec) -> None:
        await self._supervisor.stop(spec.service_id, force=True)

    async def preloaded(self, spec: ServiceSpec) -> None:
        """Waits for the second stage, which is made beside the rest."""
        with trio.fail_after(120):
            while self._supervisor.preloaded(spec.service_id) is None:  # noqa: ASYNC110  # nothing tells
                await trio.sleep(0.05)

    async def kill(self, spec: ServiceSpec) -> float:
        """The seconds from `kill -9` until it is routable again."""
        (instance,) = self._supervisor.instances(spec.service_id)
        assert instance.pid is not None
        self._recorder.at.clear()
        begin = time.monotonic()
        os.kill(instance.pid, signal.SIGKILL)
        await self._recorder.until(lambda: not self._recorder.at.keys().isdisjoint(TERMINATED))
        return self._recorder.at[ServiceStatus.RUNNING] - begin


@asynccontextmanager
async def agents(directory: Path, text: str, kind: str, python: str | None = None) -> AsyncIterator[Agents]:
    file = directory / "agent.py"
    file.write_text(text)
    recorder = Notices()
    async with trio.open_nursery() as nursery:
        with tempfile.TemporaryDirectory(dir=directory) as logs:
            supervisor = Supervisor(recorder, log_dir=logs, fork_server=kind == "forked")
            await nursery.start(supervisor.run)
            try:
                yield Agents(supervisor, recorder, file, python)
            finally:
                await supervisor.shutdown(force=True)


async def start(rounds: int, directory: Path) -> None:
    """From the command to an agent that is routable, and from its death."""
    first: dict[str, list[float]] = {kind: [] for kind in KINDS}
    next_: dict[str, list[float]] = {kind: [] for kind in KINDS}
    killed: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            async with agents(directory, ECHO, kind) as those:
                spec, taken_s = await those.start()
                first[kind].append(taken_s)
                for _ in range(4):
                    await trio.sleep(PAUSE_S)
                    next_[kind].append((await those.start())[1])
                for _ in range(4):
                    await trio.sleep(PAUSE_S)
                    killed[kind].append(await those.kill(spec))
    for kind in KINDS:
        against = () if kind == "spawned" else next_["spawned"]
        row(f"agent, {kind}: start → routable (goal 25)", next_[kind], against, "spawned")
        row(
            f"agent, {kind}: kill -9 → routable (goal 30)",
            killed[kind],
            against and killed["spawned"],
            "spawned",
        )
        row(
            f"agent, {kind}: the first start of a manager",
            first[kind],
            against and first["spawned"],
            "spawned",
        )


def crash(rounds: int, directory: Path) -> None:
    """As a client sees it: from the kill to the next handshake, beside other process managers."""
    agent = directory / "agent.py"
    agent.write_text(ECHO)
    with ExitStack() as stack:
        ports: dict[str, int] = {}
        for title, (program, system) in SYSTEMS.items():
            if title.startswith("Circus"):
                continue
            if shutil.which(program) is None:
                note(title, "not installed here")
                continue
            ports[title] = free_port()
            stack.enter_context(system(directory, ports[title]))
            seconds_until_answer(ports[title])
        hosts = {kind: stack.enter_context(hosted(directory, agent, kind)) for kind in KINDS}
        child: list[float] = []
        times: dict[str, list[float]] = {title: [] for title in (*hosts, *ports)}
        for _ in range(4 * rounds):
            time.sleep(PAUSE_S)
            child.append(bare())
            for title, (process, port) in hosts.items():
                time.sleep(PAUSE_S)
                times[title].append(host_back(process, port))
            for title, port in ports.items():
                time.sleep(PAUSE_S)
                times[title].append(back(port))
    row("tiny child, no manager: start → handshake", child)
    for title, found in times.items():
        what = f"agentmgr, agent, {title}" if title in KINDS else f"{title}, tiny child"
        row(f"{what}: kill -9 → handshake", found, child, "tiny child's start")


@contextmanager
def hosted(directory: Path, agent: Path, kind: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A manager with its database, in a process of its own, and its agent's port."""
    home = directory / kind
    home.mkdir()
    port = free_port()
    with started_as(kind), manager(home) as process:
        request = {"id": 1, "do": "register", "name": "agent", "file": str(agent), "port": port}
        ask(process, {**request, "stable_after": 0, "wait": True})
        try:
            yield process, port
        finally:
            ask(process, {"id": 2, "do": "unregister", "name": "agent"})


def host_back(process: subprocess.Popen[bytes], port: int) -> float:
    """The manager has the port open as well: a client waits there for the next agent."""
    ((_, pid, _, _),) = ask(process, {"id": 3, "do": "list"})["services"]["agent"]["instances"]
    os.kill(pid, signal.SIGKILL)
    return seconds_until_answer(port)


async def framework(rounds: int, directory: Path, python: str) -> None:
    """An agent whose packages take seconds to import."""
    if subprocess.run([python, "-c", "import langgraph, agentmgr"], stderr=subprocess.DEVNULL).returncode:
        note("LangGraph agent", f"{python} has not both LangGraph and this package")
        return
    imports = "\n".join(line for line in GRAPH.splitlines() if line.startswith("from "))
    imported: list[float] = []
    again: dict[str, list[float]] = {kind: [] for kind in KINDS}
    killed: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        begin = time.monotonic()
        await trio.run_process([python, "-c", imports])
        imported.append(time.monotonic() - begin)
        for kind in KINDS:
            async with agents(directory, GRAPH, kind, python) as those:
                spec, _ = await those.start()
                if kind == "forked":
                    await those.preloaded(spec)
                for _ in range(3):
                    await trio.sleep(PAUSE_S)
                    killed[kind].append(await those.kill(spec))
                    await those.stop(spec)
                    again[kind].append(await those.start_again(spec))
    row("LangGraph: bare import", imported)
    for kind in KINDS:
        for what, times in (("stopped", again[kind]), ("kill -9", killed[kind])):
            row(f"LangGraph agent, {kind}: {what} → routable (goal 0.1 ×)", times, imported, "bare import")


def many(count: int, directory: Path) -> None:
    """`agentmgr apply` of so many agents until all are routable, and their memory then."""
    agent = directory / "agent.py"
    agent.write_text(ECHO)
    for kind in KINDS:
        home = directory / f"many-{kind}"
        home.mkdir()
        with started_as(kind), manager_by_command(home):
            declare(home / "warm.toml", {"warm": agent})
            agentmgr(home, "apply", "warm.toml")  # from here on its manager runs
            declare(home / "services.toml", {f"a{number}": agent for number in range(count)})
            begin = time.monotonic()
            agentmgr(home, "apply", "services.toml")
            row(f"{count} agents, {kind}: apply → all routable (goal 2,000)", [time.monotonic() - begin])
            time.sleep(2)
            sizes = [pss_bytes(pid) for pid in hosts_of(home)]
            size = f"{statistics.median(sizes) / 2**20:.1f} MiB (of {len(sizes)})"
            note(f"{count} agents, {kind}: PSS of one, median (goal 8)", size)


def asleep(rounds: int, directory: Path) -> None:
    """From the first byte of a new client to the answer, and what a thousand that sleep cost."""
    if not hasattr(ServiceConfig("x"), "start"):
        note("asleep → first answer; 990 of 1,000 asleep", "this version has no start on demand")
        return
    agent = directory / "agent.py"
    agent.write_text(ECHO)
    home = directory / "asleep"
    home.mkdir()
    port = free_port()
    with manager_by_command(home):
        declare(home / "ten.toml", {f"awake{number}": agent for number in range(10)})
        agentmgr(home, "apply", "ten.toml")
        before = at_rest(home)
        declare(home / "all.toml", {f"asleep{number}": agent for number in range(990)}, start="on-demand")
        agentmgr(home, "apply", "all.toml")
        after = at_rest(home)
        with subprocess.Popen(
            [sys.executable, "-m", "agentmgr", "proxy", "--port", str(port)],
            env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as gateway:  # fmt: skip
            try:
                seconds_until_answer(port)
                times = [trio.run(first_answer, port, f"asleep{number}") for number in range(4 * rounds)]
            finally:
                gateway.terminate()
    row("asleep → first answer to a new client (goal 60)", times)
    found = f"{(after[0] - before[0]) * 100:+.2f} % of a core, {(after[1] - before[1]) / 2**20:+.1f} MiB"
    note("990 asleep beside 10: the manager's CPU, RSS (goal 0.2, 5)", found)


async def first_answer(port: int, name: str) -> float:
    begin = time.monotonic()
    async with open_session(f"ws://127.0.0.1:{port}/services/{name}") as session:
        await session.ask("hello")
    return time.monotonic() - begin


def at_rest(home: Path, seconds: float = 15) -> tuple[float, float]:
    """The manager's share of a core, and its resident bytes."""
    pid = json.loads(agentmgr(home, "info", "--format", "json"))["manager"]["pid"]
    time.sleep(5)
    before, begin = cpu_s(pid), time.monotonic()
    time.sleep(seconds)
    stat = procfs.stat(pid)
    assert stat is not None
    share = (cpu_s(pid) - before) / (time.monotonic() - begin)
    return share, stat.resident_pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def manager_by_command(home: Path) -> Iterator[None]:
    """Ends the manager that commands of this database have started."""
    try:
        yield
    finally:
        agentmgr(home, "shutdown")


def agentmgr(home: Path, *words: str) -> str:
    command = [sys.executable, "-m", "agentmgr", *words]
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"agentmgr {' '.join(words)}: {done.stderr}")
    return done.stdout


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "AGENTMGR_DB": str(home / "m.db")}


def declare(file: Path, services: dict[str, Path], **options: str) -> None:
    tables = (
        "\n".join(
            [
                f"[services.{name}]",
                *(f'{key} = "{value}"' for key, value in {**options, "agent_factory_path": agent}.items()),
            ]
        )
        for name, agent in services.items()
    )
    file.write_text("\n".join(tables) + "\n")


def hosts_of(home: Path) -> Iterator[int]:
    """The processes of agents whose journals are there."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if b"--journal" in words and os.fsencode(home) in words:
                yield int(entry.name)


def pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--langgraph", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--only", default=",".join(FIGURES), help=f"some of {', '.join(FIGURES)}")
    args = parser.parse_args()
    chosen = args.only.split(",")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    work: dict[str, Callable[[Path], None]] = {
        "start": lambda directory: trio.run(start, args.rounds, directory),
        "crash": lambda directory: crash(args.rounds, directory),
        "framework": lambda directory: trio.run(framework, args.rounds, directory, args.langgraph),
        "many": lambda directory: many(args.agents, directory),
        "asleep": lambda directory: asleep(args.rounds, directory),
    }
    for figure in chosen:
        with tempfile.TemporaryDirectory() as name:
            work[figure](Path(name))


if __name__ == "__main__":
    main()
