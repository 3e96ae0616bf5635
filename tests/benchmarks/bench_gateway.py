"""Figures P1 to P6 and P12 of the gateway, against what a user would install instead.

    python tests/benchmarks/bench_gateway.py [--seconds 2] [--tunnels 5000] [--only agentmgr,HAProxy]

All proxies are measured in one run, one after the other, with the same backend (a byte echo in a plain
epoll loop) and the same load, each in a process of its own on loopback. The figure is CPU time of the
proxy's processes for each unit of work, from /proc: wall times drift by a factor of two on a busy machine.
A proxy that is not installed is named and left out. configurable-http-proxy is found on PATH or, installed
by npm into some folder, through AGENTMGR_BENCH_CHP=PATH/TO/configurable-http-proxy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import bench_load
import trio
from attrs import evolve

from agentmgr.core.request import ClientRequest
from agentmgr.core.routing import Backend, Router, RoutingTable
from agentmgr.core.strategies import choose
from agentmgr.models import ConditionOperator, RoutingCondition, RoutingRule, RoutingStrategy
from agentmgr.proxy import Gateway
from agentmgr.worker.worker import LIMITS

HERTZ = os.sysconf("SC_CLK_TCK")


class Proxy:
    """A running proxy: its port, and what its processes have cost so far."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self._process = process

    def _family(self) -> list[int]:
        pids, found = [self._process.pid], []
        while pids:
            pid = pids.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (task / "children").read_text().split())
        return found

    def cpu_s(self) -> float:
        total = 0.0
        for pid in self._family():
            # schedstat counts nanoseconds, and /proc/PID/stat ticks of 10 ms.
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
        return total

    def rss_bytes(self) -> int:
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._family()]
        return sum(pages) * resource.getpagesize()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# How each is started: (folder for its files, its port, the backend's port) -> command.


def start_agentmgr(folder: Path, port: int, backend: int) -> list[str] | None:
    return [sys.executable, __file__, "--gateway", str(port), str(backend)]


def start_haproxy(folder: Path, port: int, backend: int) -> list[str] | None:
    (folder / "haproxy.cfg").write_text(
        "global\n  nbthread 1\n  maxconn 8000\n"
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
        "  timeout tunnel 1h\n"
        f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\n"
        f"backend b\n  server s 127.0.0.1:{backend}\n"
    )
    binary = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    return [binary, "-db", "-f", str(folder / "haproxy.cfg")] if binary else None


def start_nginx(folder: Path, port: int, backend: int) -> list[str] | None:
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        "worker_rlimit_nofile 15000; events { worker_connections 12000; }\n"
        "http { access_log off;\n"
        f"  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{\n"
        f"    proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1; proxy_read_timeout 1h;\n"
        "    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; } } }\n"
    )
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    return [binary, "-p", str(folder), "-c", str(folder / "nginx.conf")] if binary else None


def start_caddy(folder: Path, port: int, backend: int) -> list[str] | None:
    (folder / "Caddyfile").write_text(
        f"{{\n  admin off\n  auto_https off\n}}\n:{port} {{\n  reverse_proxy 127.0.0.1:{backend}\n}}\n"
    )
    binary = shutil.which("caddy")
    config = str(folder / "Caddyfile")
    return [binary, "run", "--config", config, "--adapter", "caddyfile"] if binary else None


def start_chp(folder: Path, port: int, backend: int) -> list[str] | None:
    binary = os.environ.get("AGENTMGR_BENCH_CHP") or shutil.which("configurable-http-proxy")
    if not binary:
        return None
    options = f"--ip 127.0.0.1 --port {port} --api-port {free_port()} --log-level error"
    return [binary, *options.split(), "--default-target", f"http://127.0.0.1:{backend}"]


PROXIES: dict[str, Callable[[Path, int, int], list[str] | None]] = {
    "agentmgr": start_agentmgr,
    "HAProxy": start_haproxy,
    "nginx": start_nginx,
    "Caddy": start_caddy,
    "c-h-p": start_chp,
}


@contextlib.contextmanager
def running(name: str, backend: int) -> Iterator[Proxy | None]:
    """The proxy of that name, answering; None where it is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        command = PROXIES[name](Path(folder), port, backend)
        if command is None:
            yield None
            return
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            bench_load.wait_for(port)
            yield Proxy(name, port, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def serve_gateway(port: int, backend: int) -> None:
    """The gateway as a worker runs it."""
    instance = Backend("ins_1", "svc_1", "echo", "127.0.0.1", backend)
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=4096)
    gateway = Gateway(RoutingTable((instance,)), limits=evolve(LIMITS, close_pause_s=0.001))
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(gateway.serve, listeners))
            async for _ in signals:
                nursery.cancel_scope.cancel()


# What is measured: microseconds of CPU for each unit, or KiB.


def echoes(proxy: Proxy, connections: int, size: int, seconds: float) -> tuple[float, float]:
    """CPU in microseconds for each echo, and the median time of one in microseconds."""
    with bench_load.clients(proxy.port, connections) as socks:
        bench_load.ping_pong(socks, size, seconds / 4)  # warm
        before = proxy.cpu_s()
        count, median_s = bench_load.ping_pong(socks, size, seconds)
        return (proxy.cpu_s() - before) / count * 1e6, median_s * 1e6


def idle_tunnels(proxy: Proxy, count: int) -> float:
    """KiB of memory for each tunnel that does nothing."""
    with bench_load.clients(proxy.port, 200):
        pass
    before = proxy.rss_bytes()
    with bench_load.clients(proxy.port, count):
        return (proxy.rss_bytes() - before) / count / 1024


def handshakes(proxy: Proxy, seconds: float) -> float:
    """CPU in microseconds for each connection: opened, one echo, closed."""
    bench_load.open_and_close(proxy.port, seconds / 4)
    before = proxy.cpu_s()
    count = bench_load.open_and_close(proxy.port, seconds)
    return (proxy.cpu_s() - before) / count * 1e6


def routing_us(candidates: int, strategy: RoutingStrategy, rules: int = 20) -> float:
    """Microseconds for one decision, the last of the rules being the one that matches."""
    backends = tuple(
        Backend(f"ins_{i}", f"svc_{i}", f"s{i}", "localhost", 1, frozenset({"pool"}))
        for i in range(candidates)
    )
    never = RoutingCondition("user_agent", ConditionOperator.CONTAINS, "no such agent")
    made = [RoutingRule(f"r{i}", (never,), priority=i, target_tags=["pool"]) for i in range(rules - 1)]
    made.append(RoutingRule("last", (), priority=rules, target_tags=["pool"], target_strategy=strategy))
    router = Router(RoutingTable(backends, tuple(made)))
    live = {backend.instance_id: random.randrange(9) for backend in backends}
    headers = {"user-agent": "Mozilla/5.0", "host": "localhost"}

    def decide(i: int) -> None:
        request = ClientRequest("/chat?x=1", f"10.0.0.{i % 250}", 1, headers)
        pool = router.pool(request)
        choose(
            pool.strategy,
            pool.routable,
            live=live,
            rotation=pool.rotation,
            rand=random.random,
            key=pool.key_of(request),
        )

    samples = []
    for _ in range(5):
        count = 200
        begin = time.process_time()
        for i in range(count):
            decide(i)
        samples.append((time.process_time() - begin) / count * 1e6)
    return statistics.median(samples)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument("--tunnels", type=int, default=5000, help="idle ones, for P4")
    parser.add_argument("--only", help="names of proxies, with commas")
    parser.add_argument("--gateway", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gateway:
        with contextlib.suppress(KeyboardInterrupt):
            trio.run(serve_gateway, *options.gateway)
        return

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = options.only.split(",") if options.only else list(PROXIES)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}")
    columns = ["P1 100 x 128 B", "P2 1 x 128 B", "p50", "P3 20 x 64 KiB", "P4 KiB/tunnel", "P5 connection"]
    columns += ["P12 50", "100", "200", "400 x 128 B"]
    print(f"{'CPU us each':12}" + "".join(f"{column:>15}" for column in columns))
    with bench_load.echo_server() as backend:
        with bench_load.clients(backend, 1) as socks:
            _, direct = bench_load.ping_pong(socks, 128, options.seconds)
        for name in names:
            with running(name, backend) as proxy:
                if proxy is None:
                    print(f"{name:12} is not installed")
                    continue
                row = [echoes(proxy, 100, 128, options.seconds)[0]]
                alone, median = echoes(proxy, 1, 128, options.seconds)
                row += [alone, median - direct * 1e6, echoes(proxy, 20, 64 * 1024, options.seconds)[0]]
                row += [idle_tunnels(proxy, options.tunnels), handshakes(proxy, options.seconds)]
                row += [echoes(proxy, n, 128, options.seconds / 2)[0] for n in (50, 100, 200, 400)]
                print(f"{name:12}" + "".join(f"{value:15.1f}" for value in row), flush=True)
    print(f"p50 is what a proxy adds to the {direct * 1e6:.0f} us of an echo without one.")
    print("P6, us for a decision:")
    for strategy in (
        RoutingStrategy.ROUND_ROBIN,
        RoutingStrategy.LEAST_CONNECTIONS,
        RoutingStrategy.HASH_BASED,
    ):
        small, large = routing_us(16, strategy), routing_us(1000, strategy)
        more = routing_us(16, strategy, rules=40)
        print(f"  {strategy:18} 16: {small:6.1f}   1000: {large:6.1f}   16, 40 rules: {more:6.1f}")


if __name__ == "__main__":
    main()
