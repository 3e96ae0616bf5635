"""Figures P1 to P6 and P12 of the gateway, against what a user would install instead.

    chrt -r 1 python tests/benchmarks/bench_gateway.py [--seconds 0.3] [--rounds 5] [--only agentmgr,HAProxy]

`agentmgr` is an `agentmgr daemon` as it is by default, with the gateway in a process of its own; `inside`
is one with `--workers 0`. All proxies run at once, with the same echo server (a plain epoll loop) and the
same load on loopback, and are measured in turn, in several rounds: on a busy machine only what is
measured within seconds of each other can be compared. `chrt -r 1` keeps its other work away. A figure is
the median over the rounds of the CPU time, from /proc, that all processes of a proxy (the manager too)
take for each unit of work.

A proxy that is not installed is named and left out. configurable-http-proxy is found on PATH or,
installed by npm into some folder, through AGENTMGR_BENCH_CHP=PATH/TO/configurable-http-proxy. With
`--starts N` it measures, N times in both modes, how long a daemon takes until its gateway accepts, and
its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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
from pathlib import Path

import bench_load
import trio

from agentmgr import AgentManager, ServiceConfig
from agentmgr.core.request import ClientRequest
from agentmgr.core.routing import Backend, Router, RoutingTable
from agentmgr.core.strategies import choose
from agentmgr.models import ConditionOperator, RoutingCondition, RoutingRule, RoutingStrategy

HERTZ = os.sysconf("SC_CLK_TCK")


class Proxy:
    """A running proxy: its port, and what its processes have cost so far."""

    def __init__(
        self, name: str, port: int, process: subprocess.Popen[bytes], accepted_after_s: float
    ) -> None:
        self.name = name
        self.port = port
        self.accepted_after_s = accepted_after_s
        self._process = process

    def _family(self) -> list[int]:
        pids, found = [self._process.pid], []
        while pids:
            pid = pids.pop()
            with contextlib.suppress(OSError):
                if bench_load.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue  # our instance is the same server as the others' backend
                found.append(pid)
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

    def pss_bytes(self) -> int:
        """Memory, of which pages that processes share count once."""
        found = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self._family()]
        return sum(int(text.partition("\nPss:")[2].split()[0]) for text in found) * 1024


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# How each is started: (folder for its files, its port, the backend's port) -> command.


def start_agentmgr(folder: Path, port: int, _backend: int, *options: str) -> list[str] | None:
    async def register() -> None:
        command = (sys.executable, bench_load.__file__, "{port}")
        config = ServiceConfig(ready="tcp", health="none")
        async with AgentManager(folder / "agent_manager.db") as manager:
            await manager.register_service(
                "echo", command=command, config=config, auto_start=True, wait=False
            )

    trio.run(register)
    words = ("daemon", "--host", "127.0.0.1", "--proxy-port", str(port), *options)
    return [sys.executable, "-m", "agentmgr", *words]


def start_inside(folder: Path, port: int, backend: int) -> list[str] | None:
    return start_agentmgr(folder, port, backend, "--workers", "0")


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
    "inside": start_inside,
    "HAProxy": start_haproxy,
    "nginx": start_nginx,
    "Caddy": start_caddy,
    "c-h-p": start_chp,
}


@contextlib.contextmanager
def running(name: str, folder: Path, backend: int) -> Iterator[Proxy | None]:
    """The proxy of that name, answering; None where it is not installed."""
    port = free_port()
    command = PROXIES[name](folder, port, backend)
    if command is None:
        yield None
        return
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        accepted_after_s = bench_load.wait_for_accept(port) - began
        bench_load.wait_for(port)
        yield Proxy(name, port, process, accepted_after_s)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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


def starts(name: str, count: int) -> None:
    """Times of a daemon from its exec to its gateway's first accept, and its memory when it rests."""
    times, sizes = [], []
    for _ in range(count):
        with tempfile.TemporaryDirectory() as folder, running(name, Path(folder), 0) as proxy:
            assert proxy is not None
            times.append(proxy.accepted_after_s * 1e3)
            time.sleep(1)
            sizes.append(proxy.pss_bytes() / 2**20)
    accepts, size = statistics.median(times), statistics.median(sizes)
    print(f"{name:12} accepts after {accepts:.0f} ms; takes {size:.1f} MiB (PSS)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tunnels", type=int, default=5000, help="idle ones, for P4")
    parser.add_argument("--only", help="names of proxies, with commas")
    parser.add_argument("--starts", type=int, help="how often to start a daemon")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}")
    if options.starts:
        starts("agentmgr", options.starts)
        starts("inside", options.starts)
        return
    names = options.only.split(",") if options.only else list(PROXIES)
    seconds = options.seconds
    columns: dict[str, Callable[[Proxy], float]] = {
        "P1 64 x 128 B": lambda proxy: echoes(proxy, 64, 128, seconds)[0],
        "P2 1 x 128 B": lambda proxy: echoes(proxy, 1, 128, seconds)[0],
        "p50": lambda proxy: echoes(proxy, 1, 128, seconds)[1],
        "P3 20 x 64 KiB": lambda proxy: echoes(proxy, 20, 64 * 1024, seconds)[0],
        "P5 connection": lambda proxy: handshakes(proxy, seconds),
        "P12 100 x 128 B": lambda proxy: echoes(proxy, 100, 128, seconds)[0],
        "400 x 128 B": lambda proxy: echoes(proxy, 400, 128, seconds)[0],
    }
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(bench_load.echo_server())
        proxies = []
        for name in names:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            proxy = stack.enter_context(running(name, Path(folder), backend))
            if proxy is None:
                print(f"{name} is not installed")
            else:
                proxies.append(proxy)
        rows = {proxy.name: [idle_tunnels(proxy, options.tunnels)] for proxy in proxies}
        for measure in columns.values():
            found: dict[str, list[float]] = {proxy.name: [] for proxy in proxies}
            for _, proxy in itertools.product(range(options.rounds), proxies):
                found[proxy.name].append(measure(proxy))
            for name, figures in found.items():
                rows[name].append(statistics.median(figures))
        with bench_load.clients(backend, 1) as socks:
            _, direct = bench_load.ping_pong(socks, 128, seconds)
    print(f"{'CPU us each':12}" + "".join(f"{column:>16}" for column in ("P4 KiB/tunnel", *columns)))
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{value:16.1f}" for value in row))
    print(f"p50 is the time of an echo; without a proxy it is {direct * 1e6:.0f} us.")
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
