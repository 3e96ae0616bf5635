"""Figure P11: how late partial answers come, straight from the host and through the gateway.

    python tests/benchmarks/bench_streaming.py [--sessions 200] [--rate 50] [--seconds 10]

One host, one gateway and the clients are processes of their own on loopback. Each partial answer carries the
time at which the agent said it; the clock is one for all processes. The delay added by the gateway is the
difference between the two rows. Prints a table; asserts nothing.
"""

import argparse
import base64
import os
import platform
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import trio

from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.proxy import Gateway

AGENT = """
import time
import trio

async def agent(message):
    rate, seconds = map(float, message.split())
    begin = trio.current_time() + hash(message + str(time.monotonic_ns())) % 1000 / 1000 / rate
    for number in range(int(rate * seconds)):
        await trio.sleep_until(begin + number / rate)
        yield f"T{time.monotonic_ns()}."
"""
STAMP = re.compile(rb'"content":"T(\d+)\.')


async def serve_gateway(port: int, backend: int) -> None:
    instance = Backend("ins_1", "svc_1", "agent", "127.0.0.1", backend)
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=1024)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(Gateway(RoutingTable((instance,))).serve, listeners))
            async for _ in signals:
                nursery.cancel_scope.cancel()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def started(*words: str, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return process


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def connect(port: int, message: str, *, say: bool = True) -> socket.socket:
    """A WebSocket that has sent one message, masked with zeros, and does not block; or none, and blocks."""
    sock = socket.create_connection(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    if not say:
        return sock
    text = f'{{"event":"user.message","content":"{message}"}}'.encode()
    sock.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
    sock.setblocking(False)
    return sock


def delays_s(port: int, sessions: int, rate: float, seconds: float) -> list[float]:
    """Of each partial answer, from the agent's `yield` to the client's `recv`; no client reads, and no time
    counts, until all are connected."""
    poll, socks, tails = select.epoll(), {}, {}
    for _ in range(sessions):
        sock = connect(port, f"{rate} {seconds}")
        socks[sock.fileno()], tails[sock.fileno()] = sock, b""
        poll.register(sock, select.EPOLLIN)
    found: list[float] = []
    ready = time.monotonic_ns()
    expected, deadline = int(rate * seconds) * sessions, time.monotonic() + seconds * 3 + 10
    while len(found) < expected and time.monotonic() < deadline:
        for fd, _ in poll.poll(1):
            data = tails[fd] + socks[fd].recv(2**16)
            now = time.monotonic_ns()
            end = 0
            for stamp in STAMP.finditer(data):
                found.append((now - max(int(stamp[1]), ready)) / 1e9)
                end = stamp.end()
            tails[fd] = data[end:][-200:]
    for sock in socks.values():
        sock.close()
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0, help="partial answers a second, of each session")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--gateway", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gateway:
        trio.run(serve_gateway, *options.gateway)
        return
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{options.sessions} sessions x {options.rate:.0f} a second for {options.seconds:.0f} s"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(AGENT)
        file.flush()
        ports = free_port(), free_port()
        host = started("-m", "agentmgr.agent", file.name, "--port", str(ports[0]), port=ports[0])
        gateway = started(__file__, "--gateway", str(ports[1]), str(ports[0]), port=ports[1])
        try:
            for name, port in (("host", ports[0]), ("host and gateway", ports[1])):
                before = cpu_s(host), cpu_s(gateway)
                found = delays_s(port, options.sessions, options.rate, options.seconds)
                shares = [(now - then) / options.seconds for now, then in
                          zip((cpu_s(host), cpu_s(gateway)), before, strict=True)]  # fmt: skip
                p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
                print(
                    f"| {name:<17} | {len(found):>7} received | p50 {p50 * 1e3:7.2f} ms | "
                    f"p99 {p99 * 1e3:7.2f} ms | CPU of one: host {shares[0]:.0%}, gateway {shares[1]:.0%} |"
                )
        finally:
            for process in (host, gateway):
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
