"""What durable sessions cost a host and its clients, beside sessions in memory, in one run.

    python tests/benchmarks/bench_sessions.py [--sessions N] [--rate R] [--seconds S] [--stored N]

Prints a table; asserts nothing. Real hosts and sockets; `bench_journal.py` measures the journal alone. In the
load each session says R pieces of an answer a second, of 60 characters. Memory and durable take turns, and
the middle of three is shown: other work on the machine then hurts both.
"""

import argparse
import json
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path

import trio
from bench_journal import fill
from bench_streaming import connect, cpu_s, delays_s, free_port, started

from agentmgr.client import ManagerClient
from agentmgr.journal.sqlite import open_journal
from agentmgr.process.paths import RuntimePaths

AGENT = """
import time
import trio

async def agent(message):
    rate, seconds = map(float, message.split())
    begin = trio.current_time() + hash(message + str(time.monotonic_ns())) % 1000 / 1000 / rate
    for number in range(int(rate * seconds)):
        await trio.sleep_until(begin + number / rate)
        yield f"T{time.monotonic_ns()}.".ljust(60, "x")
"""


def row(what: str, goal: str, found: str) -> None:
    print(f"| {what} | {goal} | {found} |", flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


@contextmanager
def host(file: Path, journal: Path | None):
    port = free_port()
    words = ["-m", "agentmgr", "serve", str(file), "--port", str(port)]
    process = started(*words, *(() if journal is None else ("--journal", str(journal))), port=port)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()


def load(file: Path, directory: Path, sessions: int, rate: float, seconds: float) -> None:
    cpu: dict[bool, list[float]] = {False: [], True: []}
    delays: dict[bool, list[list[float]]] = {False: [], True: []}
    sizes: list[float] = []
    for round_ in range(3):
        for durable in (False, True):
            journal = directory / f"load{round_}.db" if durable else None
            with host(file, journal) as (process, port):
                before = cpu_s(process)
                found = delays_s(port, sessions, rate, seconds)
                cpu[durable].append((cpu_s(process) - before) / len(found))
                delays[durable].append(found)
            if journal is not None:
                with closing(sqlite3.connect(journal)) as db:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # the log has a fixed size
                sizes.append(journal.stat().st_size / len(found))

    def middle(durable: bool, share: float) -> float:
        return statistics.median(found[int(len(found) * share)] for found in delays[durable])

    memory, kept = (statistics.median(cpu[durable]) for durable in (False, True))
    what = f"host CPU of a partial answer, {sessions} × {rate:.0f}/s: memory, durable, ratio"
    row(what, "≤ 1.3", f"{memory * 1e6:.0f} µs, {kept * 1e6:.0f} µs, {kept / memory:.2f}")
    for name, share, goal in (("p50", 0.5, "≤ 1 ms"), ("p99", 0.99, "≤ 5 ms")):
        there, kept = middle(False, share), middle(True, share)
        what = f"agent to client, {name}: memory, durable, what the journal adds"
        row(what, goal, f"{ms(there)}, {ms(kept)}, {ms(kept - there)}")
    row(
        "bytes on disk for an event of 60 characters, with its part of the answer",
        "≤ 200",
        f"{statistics.median(sizes):.0f}",
    )


def ask(sock: socket.socket, event: str, until: bytes) -> bytes:
    """Sends one event, masked with zeros, and reads until `until` has come."""
    text = event.encode()
    sock.sendall(bytes([0x81, 0x80 | 126]) + len(text).to_bytes(2, "big") + bytes(4) + text)
    data = b""
    while until not in data:
        data += (more := sock.recv(2**16))
        assert more, data
    return data


def reconnect(file: Path, directory: Path, sessions: int = 10) -> None:
    """To sessions of 10,000 events, in a host that has just started: its first event, and its newest."""
    journal, names = directory / "long.db", []
    with host(file, journal) as (_, port):
        for _ in range(sessions):
            sock = connect(port, "100000 0.1")
            sock.setblocking(True)
            data = b""
            while b'"event":"agent.final_answer"' not in data:
                data += sock.recv(2**20)
            names.append(data.partition(b'"session_id":"')[2].partition(b'"')[0].decode())
    found: dict[int, list[float]] = {0: [], 9_990: []}
    for last_seq, times in found.items():
        with host(file, journal) as (_, port):
            for name in names:
                event = {"event": "user.reconnect", "session_id": name, "last_seq": last_seq}
                began = time.perf_counter()
                sock = connect(port, "0 0", say=False)
                ask(sock, json.dumps(event).ljust(126), b'"seq":')
                times.append(time.perf_counter() - began)
                sock.close()
        what = f"fresh instance, session of 10,000 events: connect → event {last_seq + 1}"
        row(what, "≤ 20 ms", f"{ms(statistics.median(times))}, worst {ms(max(times))}")


def rss_mib(pid: int) -> float:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def beside_many(file: Path, directory: Path, number: int) -> None:
    """A manager and a host of a service with few stored sessions, then with `number`."""
    paths = RuntimePaths.of(directory / "agent_manager.db")
    words = [sys.executable, "-m", "agentmgr", "daemon"]
    memory: list[tuple[float, float]] = []
    lists: list[float] = []
    created: list[float] = []
    with subprocess.Popen(words, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        try:
            assert daemon.stdout is not None
            await trio.to_thread.run_sync(daemon.stdout.readline)
            async with ManagerClient(paths.control_socket) as manager:
                service = await manager.register_service("agent", str(file))
                for many in (False, True):
                    if many:
                        journal = paths.sessions / f"{service.service_id}.db"
                        async with open_journal(journal, "ins_filler") as opened:
                            await fill(opened, number)
                    service = await manager.start_service("agent")
                    [instance] = service.instances
                    for _ in range(50):
                        sock = connect(instance.port, "", say=False)
                        began = time.perf_counter()
                        ask(sock, '{"event":"user.create_session"}'.ljust(126), b"agent.session_created")
                        created.append(time.perf_counter() - began)
                        sock.close()
                        began = time.perf_counter()
                        await manager.sessions.list("agent", limit=100)
                        lists.append(time.perf_counter() - began)
                    memory.append((rss_mib(daemon.pid), rss_mib(instance.pid)))
                    await manager.stop_service("agent")
        finally:
            daemon.terminate()
    for what, goal, times in (
        ("a page of 100 over the API", "≤ 20 ms", lists),
        ("create", "≤ 2 ms", created),
    ):
        few, many_ = statistics.median(times[:50]), statistics.median(times[50:])
        row(f"{what}: among 50, among {number:,}", goal, f"{ms(few)}, {ms(many_)}")
    for place, name in enumerate(("manager", "host")):
        sizes = [each[place] for each in memory]
        row(f"memory of the {name}: the same", "no growth", f"{sizes[0]:.1f} MiB, {sizes[1]:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--stored", type=int, default=100_000)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| | goal | found |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        directory, file = Path(temporary), Path(temporary, "agent.py")
        file.write_text(AGENT)
        load(file, directory, options.sessions, options.rate, options.seconds)
        reconnect(file, directory)
        trio.run(beside_many, file, directory, options.stored)


if __name__ == "__main__":
    main()
