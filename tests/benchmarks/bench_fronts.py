"""What a front costs over a WebSocket: a delta, the first byte, the list of models; what a large body does.

    python tests/benchmarks/bench_fronts.py [--streams 100] [--rate 50] [--seconds 5] [--rounds 3]

One host, one gateway, the readers of the streams and the clients are processes of their own on loopback. The
agent puts the time into each delta; the clock is one for all processes. The protocols are measured in turn,
in several rounds; a figure is the median over the rounds. `CPU` is the gateway's own, from /proc, for each
delta; `first` is from a new client's connect to its first delta while the streams go on. Ten streams show
what a message with 30 MB in base64 does to others. Prints tables; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import re
import select
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import trio
from bench_streaming import AGENT, connect, free_port, started

from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.fronts import PREFIXES, Fronts
from agentmgr.proxy import Gateway

STAMP = re.compile(rb'"(?:content|delta)":\s?"T(\d+)\.')
FIRST = "1000 0.001"  # one delta, at once
LARGE_BYTES = 30_000_000
Open = Callable[[int], socket.socket]


def post(path: str, body: dict[str, Any], port: int) -> socket.socket:
    data = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return sock


def openers(message: str) -> dict[str, Open]:
    """How a message is said in each protocol."""
    said = {"role": "user", "content": message}
    run = {"threadId": os.urandom(8).hex(), "runId": os.urandom(8).hex(), "state": {}, "tools": [],
           "messages": [{"id": "1", **said}], "context": [], "forwardedProps": {}}  # fmt: skip
    asked = {"model": "agent", "stream": True}
    return {
        "WebSocket": partial(connect, message=message),
        "Chat Completions": partial(post, "/v1/chat/completions", asked | {"messages": [said]}),
        "Responses": partial(post, "/v1/responses", asked | {"input": message}),
        "AG-UI": partial(post, "/agui/agent", run),
    }


async def serve_gateway(port: int, backend: int) -> None:
    instance = Backend("ins_1", "svc_1", "agent", "127.0.0.1", backend)
    names = frozenset({"agent", *(f"service-{number}" for number in range(999))})
    gateway = Gateway(RoutingTable((instance,), service_names=names), fronts=Fronts(",".join(PREFIXES)))
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=1024)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.serve, listeners)
            async for _ in signals:
                nursery.cancel_scope.cancel()


def read_streams(port: int, name: str, options: argparse.Namespace, parent: Any) -> None:
    """Reads many streams; whenever the parent asks, it gets the delays, in seconds, of the deltas since."""
    poll, socks, tails, found = select.epoll(), {}, {}, list[float]()
    for _ in range(options.streams):
        sock = openers(f"{options.rate} 100000")[name](port)
        sock.setblocking(False)
        socks[sock.fileno()], tails[sock.fileno()] = sock, b""
        poll.register(sock, select.EPOLLIN)
    poll.register(parent.fileno(), select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == parent.fileno():
                if not parent.recv():
                    return
                parent.send(found)
                found = []
                continue
            data, end = tails[fd] + socks[fd].recv(2**16), 0
            now = time.monotonic_ns()
            for stamp in STAMP.finditer(data):
                found.append((now - int(stamp[1])) / 1e9)
                end = stamp.end()
            tails[fd] = data[end:][-400:]


@contextmanager
def streams(port: int, name: str, options: argparse.Namespace) -> Iterator[Callable[[], list[float]]]:
    """Many streams that run; what is yielded gives the delays since it was called last."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=read_streams, args=(port, name, options, theirs), daemon=True)
    process.start()

    def delays() -> list[float]:
        ours.send(True)
        return sorted(ours.recv())

    try:
        while len(delays()) < options.streams:  # warm
            time.sleep(0.2)
        yield delays
    finally:
        ours.send(False)
        process.join()


def first_delta_s(open_stream: Open, port: int) -> float:
    began, data = time.monotonic(), b""
    with open_stream(port) as sock:
        sock.setblocking(True)
        while not STAMP.search(data):
            if not (more := sock.recv(2**16)):
                raise OSError(data.decode())
            data += more
        return time.monotonic() - began


def models_s(port: int, times: int) -> list[float]:
    """Of requests for all models, on one connection."""
    found = []
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for _ in range(times):
            began = time.monotonic()
            sock.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = sock.recv(2**20).partition(b"\r\n\r\n")
            left = int(head.lower().partition(b"content-length: ")[2].split()[0]) - len(body)
            while left:
                left -= len(sock.recv(left))
            found.append(time.monotonic() - began)
    return sorted(found)


def say_much(port: int) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * LARGE_BYTES}}
    said = {"role": "user", "content": [{"type": "text", "text": FIRST}, image]}
    with post("/v1/chat/completions", {"model": "agent", "messages": [said]}, port) as sock:
        if not sock.recv(2**16).startswith(b"HTTP/1.1 200 "):
            raise OSError("a large message was not answered")


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """By schedstat, which has nanoseconds."""
    found = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with suppress(OSError):  # a thread that has ended
            found += int((task / "schedstat").read_text().split()[0])
    return found / 1e9


def at(found: list[float], share: float) -> float:
    """A percentile, in milliseconds."""
    return found[min(len(found) - 1, int(len(found) * share))] * 1e3


class Figures(NamedTuple):
    cpu_us: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float


def measured(name: str, port: int, gateway: subprocess.Popen[bytes], options: argparse.Namespace) -> Figures:
    with streams(port, name, options) as delays:
        before = cpu_s(gateway)
        time.sleep(options.seconds)
        cpu, found = cpu_s(gateway) - before, delays()
        firsts = sorted(first_delta_s(openers(FIRST)[name], port) for _ in range(options.probes))
    ms = at(found, 0.5), at(found, 0.99), at(firsts, 0.5), at(firsts, 0.99)
    return Figures(cpu / len(found) * 1e6, *ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0, help="deltas a second, of each stream")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--probes", type=int, default=200, help="new clients, one after another")
    parser.add_argument("--only", default="", help="protocols, with commas between")
    parser.add_argument("--gateway", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gateway:
        trio.run(serve_gateway, *options.gateway)
        return
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{options.streams} streams x {options.rate:.0f} a second, {options.rounds} rounds of "
        f"{options.seconds:g} s, {options.probes} new clients each"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(AGENT)
        file.flush()
        ports = free_port(), free_port()
        host = started(
            "-m", "agentmgr.agent", file.name, "--port", str(ports[0]), "--max-message-bytes", "0",
            "--on-disconnect", "cancel",  # else the streams of the one before go on
            port=ports[0],
        )  # fmt: skip
        gateway = started(__file__, "--gateway", str(ports[1]), str(ports[0]), port=ports[1])
        try:
            _print_protocols(ports[1], gateway, options)
            found = models_s(ports[1], 200)
            options.streams = 10
            with streams(ports[1], "WebSocket", options) as delays:
                time.sleep(options.seconds)
                usual = delays()
                say_much(ports[1])
                stall = delays()
            print(
                f"\n30 MB in a message: the deltas of others are {at(stall, 0.99):.1f} ms late at p99, "
                f"{at(stall, 1):.1f} at most; without it {at(usual, 0.99):.1f} and {at(usual, 1):.1f}"
            )
            print(f"/v1/models, 1,000 services: p50 {at(found, 0.5):.2f} ms, p99 {at(found, 0.99):.2f} ms")
        finally:
            for process in (host, gateway):
                process.kill()
                process.wait()


def _print_protocols(port: int, gateway: subprocess.Popen[bytes], options: argparse.Namespace) -> None:
    names = [name for name in openers("") if not options.only or name in options.only.split(",")]
    rounds: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            rounds[name].append(measured(name, port, gateway, options))
    medians = {
        name: Figures(*map(statistics.median, zip(*found, strict=True))) for name, found in rounds.items()
    }
    base = medians[names[0]]
    print("| protocol | CPU µs per delta | × | delay p50, p99 ms | first p50, p99 ms | added at p99 |")
    print("|---|---|---|---|---|---|")
    for name, found in medians.items():
        print(
            f"| {name} | {found.cpu_us:.1f} | {found.cpu_us / base.cpu_us:.2f} "
            f"| {found.p50_ms:.2f}, {found.p99_ms:.2f} | {found.first_p50_ms:.2f}, {found.first_p99_ms:.2f} "
            f"| {found.first_p99_ms - base.first_p99_ms:+.2f} |"
        )


if __name__ == "__main__":
    main()
