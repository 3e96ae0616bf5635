"""What the command line costs, and the control API under many services (P9, P10).

    python tests/benchmarks/bench_cli.py [--services N] [--runs N]

Prints a table; asserts nothing. Wall times of commands are the best of several, less `python -c pass`.
Bytecode is cached, as after an installation, also where PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trio

from agentmgr.api import serve_control
from agentmgr.client import ManagerClient
from agentmgr.client.http import request
from agentmgr.manager import AgentManager

AGENT = "def create_agent():\n    async def answer(message): return message\n    return answer\n"


def print_row(what: str, goal: str, value: str) -> None:
    print(f"| {what:<52} | {goal:>10} | {value:>28} |", flush=True)


def best_ms(runs: int, run: Callable[[], object]) -> float:
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found) * 1e3


def command(directory: Path, *words: str) -> Callable[[], object]:
    environment = {**os.environ, "AGENTMGR_DB": str(directory / "bench.db")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(directory / "pyc")}

    def run() -> object:
        return subprocess.run(
            [sys.executable, *words], cwd=directory, env=environment, check=True, capture_output=True
        )

    return run


def commands(directory: Path, runs: int) -> None:
    bare = best_ms(runs, command(directory, "-c", "pass"))
    print_row("python -c pass", "", f"{bare:.0f} ms")
    agentmgr = ("-m", "agentmgr")
    found = best_ms(runs, command(directory, *agentmgr, "--version"))
    print_row("agentmgr --version, over that", "60 ms", f"+{found - bare:.0f} ms")
    command(directory, *agentmgr, "register", "x", "agent.py", "--auto-start")()
    try:
        for words in (["list"], ["list", "--format", "json"], ["status", "x"]):
            found = best_ms(runs, command(directory, *agentmgr, *words))
            print_row(
                f"agentmgr {' '.join(words)} with a daemon, over that", "150 ms", f"+{found - bare:.0f} ms"
            )
    finally:
        command(directory, *agentmgr, "shutdown")()


async def control_api(directory: Path, count: int) -> None:
    async with AgentManager(directory / "many.db") as manager, trio.open_nursery() as nursery:
        path = manager.paths.control_socket
        await nursery.start(serve_control, manager, path)
        async with ManagerClient(path) as client:
            times = []
            for number in range(count):
                start = time.perf_counter()
                await client.register_service(f"service-{number:05}", str(directory / "agent.py"))
                times.append((time.perf_counter() - start) * 1e3)
        half = count // 2
        median = statistics.median(times)
        first, last = statistics.median(times[:half]), statistics.median(times[half:])
        print_row(
            f"register, each of {count} (1st half, 2nd half)",
            "5 ms",
            f"{median:.1f} ms ({first:.1f}, {last:.1f})",
        )

        async def list_all() -> None:
            async with request(path, "GET", "/api/v1/services?limit=1000", headers={}) as response:
                await response.read()

        found = []
        for _ in range(10):
            start, cpu = time.perf_counter(), time.process_time()
            await list_all()
            found.append(((time.perf_counter() - start) * 1e3, (time.process_time() - cpu) * 1e3))
        wall, used = min(found)
        print_row(
            f"list of {min(count, 1000)} over the control API", "50 ms", f"{wall:.0f} ms ({used:.0f} ms CPU)"
        )
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.platform()}\n")
    print_row("", "goal", "measured")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "agent.py").write_text(AGENT)
        commands(directory, options.runs)
        trio.run(control_api, directory, options.services)


if __name__ == "__main__":
    main()
