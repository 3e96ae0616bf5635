"""What it costs when an instance is on another node: `bench_cluster.py --only gate`, or this file by itself.

Three gateways, each in a process of its own and as a worker has it, with the same echo server: one that
dials it itself (`local`), and two of a cluster, of which one serves the clients and the other has the gate
(`across`). They are measured in turn, in several rounds; a figure is the median of the CPU time that one or
both processes take for each unit of work, from /proc, and of its time on the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import bench_load
import trio

from agentmgr.ca import Authority
from agentmgr.core.routing import Backend, Gate, RoutingTable
from agentmgr.credentials import Credentials
from agentmgr.proxy import Gateway
from agentmgr.worker.worker import LIMITS

NEAR, FAR = "nod_00000000000000aa", "nod_00000000000000bb"


async def serve(instance: int, node_id: str, instances_node: str, gate: int, directory: Path) -> None:
    """Prints the ports for clients and for gateways. `gate`: the port of the other node's; 0: none."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    gate_listeners = await trio.open_tcp_listeners(0, host="127.0.0.1") if node_id == FAR else []
    backend = Backend("echo", "echo", "echo", "127.0.0.1", instance, node_id=instances_node)
    table = RoutingTable((backend,), gates={NEAR: Gate("127.0.0.1", 9), FAR: Gate("127.0.0.1", gate)})
    credentials = Credentials(directory / node_id) if node_id else None
    gateway = Gateway(table, limits=LIMITS, node_id=node_id, credentials=credentials)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(gateway.serve, listeners, gate_listeners=gate_listeners))
        print(*(each.socket.getsockname()[1] for each in (*listeners, *gate_listeners)), flush=True)


class Way:
    """To the instance, and the processes on it."""

    def __init__(self, name: str, port: int, pids: tuple[int, ...]) -> None:
        self.name, self.port, self._pids = name, port, pids

    def cpu_s(self) -> float:
        return sum(
            int((task / "schedstat").read_text().split()[0]) / 1e9
            for pid in self._pids
            for task in Path(f"/proc/{pid}/task").iterdir()
        )

    def echo(self, connections: int, size: int, seconds: float) -> tuple[float, float]:
        """Microseconds of CPU, and on the clock."""
        with bench_load.clients(self.port, connections) as socks:
            before = self.cpu_s()
            count, median_s = bench_load.ping_pong(socks, size, seconds)
            return (self.cpu_s() - before) / count * 1e6, median_s * 1e6

    def connection(self, seconds: float) -> tuple[float, float]:
        before = self.cpu_s()
        count = bench_load.open_and_close(self.port, seconds)
        return (self.cpu_s() - before) / count * 1e6, seconds / count * 1e6


@contextlib.contextmanager
def ways() -> Iterator[tuple[Way, Way]]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        instance = stack.enter_context(bench_load.echo_server())
        authority = Authority.open(directory / "ca")
        for node_id in (NEAR, FAR):
            (directory / node_id).mkdir()
            credentials = Credentials(directory / node_id)
            credentials.keep(authority.issue(credentials.make_request(), node_id), authority.pem)

        def started(node_id: str, instances_node: str, gate: int = 0) -> tuple[int, list[int]]:
            facts = (str(instance), node_id, instances_node, str(gate), str(directory))
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, __file__, "--serve", *facts], stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            return process.pid, [int(port) for port in process.stdout.readline().split()]

        local, (local_port,) = started("", "")
        far, (_, gate) = started(FAR, FAR)
        near, (near_port,) = started(NEAR, FAR, gate)
        yield Way("local", local_port, (local,)), Way("across", near_port, (near, far))


def report(rounds: int = 5, seconds: float = 0.3) -> None:
    works: dict[str, Callable[[Way], tuple[float, float]]] = {
        "1 x 128 B": lambda way: way.echo(1, 128, seconds),
        "64 x 128 B": lambda way: way.echo(64, 128, seconds),
        "400 x 128 B": lambda way: way.echo(400, 128, seconds),
        "20 x 64 KiB": lambda way: way.echo(20, 64 * 1024, seconds),
        "connection": lambda way: way.connection(seconds),
    }
    print(f"{'instance here or behind a gate':32}{'local':>20}{'across':>20}{'CPU':>10}")
    with ways() as both:
        for name, work in works.items():
            found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in both}
            for _, way in itertools.product(range(rounds), both):
                found[way.name].append(work(way))
            cpu, clock = (
                {way: statistics.median(each[i] for each in all_) for way, all_ in found.items()}
                for i in (0, 1)
            )
            cells = "".join(f"{f'{cpu[way]:.1f} us CPU, {clock[way]:.0f}':>20}" for way in found)
            print(f"{name:32}{cells}{cpu['across'] / cpu['local']:9.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        instance, node_id, instances_node, gate, directory = options.serve
        trio.run(serve, int(instance), node_id, instances_node, int(gate), Path(directory))
    else:
        report(options.rounds, options.seconds)


if __name__ == "__main__":
    main()
