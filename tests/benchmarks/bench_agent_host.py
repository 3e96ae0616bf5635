"""What hosting an agent costs: start-up time and memory beside a bare interpreter, and CPU time per event.

    python tests/benchmarks/bench_agent_host.py [--rounds N]

Prints a table; asserts nothing. The bare interpreter imports the packages that the host imports, and no
more. Host and bare interpreter take turns, so that both see the same machine; least and median are shown.
Bytecode is cached, as after an installation, also where PYTHONDONTWRITEBYTECODE is set.
"""

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from agentmgr.client.session import open_session

ECHO = "async def agent(message):\n    return message\n"
STREAM = """
async def agent(message):
    for number in range(int(message)):
        yield "word "
"""
STREAM_ASYNCIO = 'import asyncio\nRUNTIME = "asyncio"\n' + STREAM + "        await asyncio.sleep(0)\n"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PACKAGES = "trio, trio_websocket, h11, attrs, json, argparse, inspect, importlib.util, traceback"


def row(what: str, *values: str) -> None:
    print(f"| {what:<44} |" + "".join(f" {value:>18} |" for value in values), flush=True)


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Started:
    """A process, with the time until it was ready, in seconds, and its memory then."""

    def __init__(self, words: list[str]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        began = time.perf_counter()
        fd = self.listener.fileno()
        self.process = subprocess.Popen(
            [sys.executable, *(word.replace("FD", str(fd)) for word in words)],
            pass_fds=[fd], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
        )  # fmt: skip
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"GET /.well-known/agentmgr/health HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(1000)
        self.ready_s = time.perf_counter() - began
        self.pss_kib = pss_kib(self.process.pid)

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.listener.close()


def host(path: Path) -> Started:
    return Started(["-m", "agentmgr.agent", str(path), "--fd", "FD"])


def bare() -> Started:
    answer = "import socket; s = socket.socket(fileno=FD); c, _ = s.accept(); c.sendall(b'x'); s.accept()"
    return Started(["-c", f"import {PACKAGES}; {answer}"])


def start_up(rounds: int, directory: Path) -> None:
    path = directory / "echo.py"
    path.write_text(ECHO)
    hosts, bares = [], []
    with host(path):
        pass  # fills the cache of bytecode
    for _ in range(rounds):
        with host(path) as process:
            hosts.append((process.ready_s, process.pss_kib))
        with bare() as process:
            bares.append((process.ready_s, process.pss_kib))
    row("", "host", "bare interpreter", "ratio")
    for name, choose in (("ready, least", min), ("ready, median", statistics.median)):
        ours, theirs = choose(s for s, _ in hosts), choose(s for s, _ in bares)
        row(name, f"{ours * 1e3:.0f} ms", f"{theirs * 1e3:.0f} ms", f"{ours / theirs:.2f}")
    ours, theirs = (statistics.median(kib for _, kib in found) / 1024 for found in (hosts, bares))
    row("memory when ready (PSS), median", f"{ours:.1f} MiB", f"{theirs:.1f} MiB", f"{ours / theirs:.2f}")


async def per_event(name: str, text: str, directory: Path, count: int = 20_000) -> None:
    path = directory / "stream.py"
    path.write_text(text)
    with await trio.to_thread.run_sync(host, path) as process:
        async with open_session(f"ws://127.0.0.1:{process.port}") as session:
            await session.ask("100")
            before, began = cpu_s(process.process.pid), time.perf_counter()
            await session.ask(str(count))
            cpu, wall = cpu_s(process.process.pid) - before, time.perf_counter() - began
    row(name, f"{cpu / count * 1e6:.0f} µs CPU", f"{wall / count * 1e6:.0f} µs wall", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        ENVIRONMENT["PYTHONPYCACHEPREFIX"] = str(Path(name) / "pyc")
        start_up(rounds, Path(name))
        trio.run(per_event, "partial answer sent, trio", STREAM, Path(name))
        trio.run(per_event, "partial answer sent, asyncio", STREAM_ASYNCIO, Path(name))


if __name__ == "__main__":
    main()
