"""What growth costs: starts, changes of the routing table, seats, new connections. It asserts nothing.

    python tests/benchmarks/bench_cluster.py [--only starts,table,…,launch] [--instances 1000,3000]

CPU is this process's own (`time.process_time`), so that other work on the machine disturbs little. The parts
are real: supervisor, control plane, gateway, messages; only instances are fakes, which cost nothing
themselves, and records go to memory. `launch` and `bundle` start real agents, on a real node.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import trio  # noqa: E402
from attrs import evolve  # noqa: E402

from agentmgr import AgentManager  # noqa: E402
from agentmgr.core.admission import Seats  # noqa: E402
from agentmgr.core.request import ClientRequest  # noqa: E402
from agentmgr.core.routing import Backend, BackendState, RoutingTable  # noqa: E402
from agentmgr.core.shared_seats import Ledger, Took  # noqa: E402
from agentmgr.core.table_change import TableChange  # noqa: E402
from agentmgr.manager.control_plane import ControlPlane  # noqa: E402
from agentmgr.manager.life import _start_what_should_run  # noqa: E402
from agentmgr.manager.tokens import Tokens  # noqa: E402
from agentmgr.models import Connection, DesiredStatus, ServiceConfig, ServiceSpec, utc_now  # noqa: E402
from agentmgr.models import ServiceStatus as Status  # noqa: E402
from agentmgr.process.ownership import ManagerLock  # noqa: E402
from agentmgr.process.paths import RuntimePaths  # noqa: E402
from agentmgr.proxy import Gateway  # noqa: E402
from agentmgr.settings import ClusterMode, Settings  # noqa: E402
from agentmgr.testing import FakeLauncher, MemoryStore  # noqa: E402
from agentmgr.worker import protocol  # noqa: E402

BACKENDS = 10_000
ROUNDS = 200


@asynccontextmanager
async def plane_of(services: int, instances: int) -> AsyncIterator[ControlPlane]:
    """So many registered services of so many instances; none runs yet."""
    store = MemoryStore()
    for number in range(services):
        config = ServiceConfig(command=("server", "{port}"), instances=instances)
        await store.add_service(ServiceSpec(f"s{number:05}", config, desired_status=DesiredStatus.RUNNING))
    with tempfile.TemporaryDirectory() as directory:
        paths = RuntimePaths.of(f"{directory}/bench.db")
        cluster: Any = SimpleNamespace(
            launcher=FakeLauncher(),
            node_workers=None,
            sessions=None,
            nodes_left=frozenset,
            check_fields=None,
            moves=SimpleNamespace(look=dict),
            remarks=lambda spec: (),
            troubles=tuple,
        )
        async with trio.open_nursery() as nursery:
            plane = ControlPlane(
                store, await store.load(), await Tokens.load(store), ManagerLock(paths), nursery,
                Settings(db_path=str(paths.database)), paths, supervises=True, cluster=cluster,
            )  # fmt: skip
            for part in (plane.publisher, plane.jobs, plane.on_demand, plane.scaler):
                nursery.start_soon(part.run)
            await nursery.start(plane.supervisor.run)
            yield plane
            nursery.cancel_scope.cancel()


async def all_run(plane: ControlPlane, count: int) -> None:
    await _start_what_should_run(plane)
    while True:
        found = plane.supervisor.instances()
        if len(found) == count and all(instance.status is Status.RUNNING for instance in found):
            await plane.publisher.published()
            return
        await trio.sleep(0.1)


async def starts(counts: list[int]) -> None:
    for count in counts:
        for per_service in (1, 100):
            async with plane_of(count // per_service, per_service) as plane:
                tables, publish = 0, plane.worker_manager.publish

                def counted(table: RoutingTable, publish: Any = publish) -> None:
                    nonlocal tables
                    tables += 1
                    publish(table)

                plane.worker_manager.publish = counted  # type: ignore[method-assign]
                began = time.process_time()
                await all_run(plane, count)
                taken_s = time.process_time() - began
            print(
                f"start of {count:,} fake instances, {per_service} of each service: "
                f"{taken_s:.2f} s CPU, {tables} tables"
            )


def table_of(per_service: int) -> RoutingTable:
    backends = tuple(
        Backend(
            f"ins_{number:016x}",
            f"svc_{number // per_service:016x}",
            f"s{number // per_service:05}",
            "127.0.0.1",
            20_000 + number,
            token="0" * 32,
        )
        for number in range(BACKENDS)
    )
    return RoutingTable(backends, service_names=frozenset(backend.service_name for backend in backends))


async def table(_: list[int]) -> None:
    for per_service in (1, 100):
        old = table_of(per_service)
        began = time.process_time()
        said = protocol.encode(protocol.Table(1, old, (), protocol.TokenPolicy(), frozenset()))
        encoded_s = time.process_time() - began
        whole = protocol.decode_order(said)
        assert isinstance(whole, protocol.Table)
        gateway = Gateway(whole.table)
        decoded_s = time.process_time() - began - encoded_s
        print(
            f"a whole table of {BACKENDS:,}, {per_service} of each service: {len(said) / 1e6:.1f} MB, "
            f"encoded in {encoded_s * 1e3:.0f} ms, decoded and routed by in {decoded_s * 1e3:.0f} ms"
        )
        compared, followed, sizes = [], [], []
        for turn in range(ROUNDS):
            gateway.route(ClientRequest(f"/services/s{turn % (BACKENDS // per_service):05}"))
            backends, place = list(old.backends), turn * 613 % BACKENDS
            if turn % 4:
                state = BackendState.DRAINING if turn % 2 else BackendState.COMING
                backends[place] = evolve(backends[place], state=state)
            else:  # one goes, and another one comes
                backends[place] = evolve(backends[place], instance_id=f"ins_{BACKENDS + turn:016x}")
            new = evolve(old, backends=tuple(backends))
            began = time.process_time()
            change = TableChange.between(old, new)
            compared.append(time.process_time() - began)
            assert change is not None
            line = protocol.encode(protocol.Changes(turn, turn + 1, change))
            sizes.append(len(line))
            began = time.process_time()
            order = protocol.decode_order(line)
            assert isinstance(order, protocol.Changes)
            gateway.change(order.change)
            followed.append(time.process_time() - began)
            old = new
        print(
            f"a change among them: {statistics.median(sizes):.0f} B, found by the manager in "
            f"{statistics.median(compared) * 1e3:.1f} ms, followed by a worker in "
            f"{statistics.median(followed) * 1e3:.2f} ms (9 of 10 within "
            f"{statistics.quantiles(followed, n=10)[-1] * 1e3:.2f})"
        )


async def seats(_: list[int]) -> None:
    """What the manager says to one of 100 workers, each 0.1 s, with 1,000 seats a second taken anywhere."""
    for occupied in (1_000, 10_000):
        ledger = Ledger(Seats())
        for number in range(occupied):
            ledger.report(f"w{number % 100}", Took(f"ins_{number:016x}"))
        for number in range(100):
            ledger.others(f"w{number}")
        began = time.process_time()
        whole = protocol.encode(protocol.SeatChanges(ledger.others("w0"), whole=True))
        whole_s, taken = time.process_time() - began, []
        for turn in range(20):
            for number in range(100):
                ledger.report(f"w{number}", Took(f"ins_{(turn * 100 + number) % occupied:016x}"))
            began = time.process_time()
            said = protocol.encode(protocol.SeatChanges(ledger.changes("w0")))
            taken.append(time.process_time() - began)
        print(
            f"seats at {occupied:,} instances: whole {len(whole) / 1e3:.0f} kB in {whole_s * 1e3:.1f} ms, "
            f"changes {len(said) / 1e3:.1f} kB in {statistics.median(taken) * 1e3:.2f} ms"
        )


async def connections(_: list[int]) -> None:
    for instances in (1, 100, 1_000):
        async with plane_of(1, instances) as plane:
            await all_run(plane, instances)
            service_id = plane.supervisor.instances()[0].service_id
            connection = Connection(
                "con_1", "192.0.2.1", 1, service_id, "s00000", "ins_1", None, "/", utc_now(), 0.0, 0, 0, 0, 0
            )
            began = time.process_time()
            for _ in range(1_000):
                plane.recorder.connection_opened(connection)
            taken_s = time.process_time() - began
        print(f"a connection opened, {instances:,} instances of its service: {taken_s * 1e3:.1f} µs")


@asynccontextmanager
async def one_node(directory: Path) -> AsyncIterator[AgentManager]:
    """A real manager, and a real daemon of a node `b`, linked by TLS on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Settings(cluster=ClusterMode.JOINED, cluster_host="127.0.0.1", cluster_port=port)
    async with AgentManager(directory / "bench.db", settings=settings) as manager:
        invitation = await manager.invite_nodes()
        words = [sys.executable, "-m", "agentmgr", "node", "--join", f"127.0.0.1:{port}", "--name", "b"]
        daemon = subprocess.Popen(
            [*words, "--directory", str(directory / "node")],
            env={**os.environ, "AGENTMGR_JOIN_SECRET": invitation.secret},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield manager
        finally:
            daemon.terminate()
            daemon.wait()


def agent_in(directory: Path) -> str:
    directory.mkdir()
    (directory / "echo.py").write_text("async def agent(message):\n    return message\n")
    return str(directory / "echo.py")


async def launch(_: list[int]) -> None:
    """A hosted agent, from start to ready, in wall time: on the manager's machine and on a node, by turns."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        agent = agent_in(directory / "agents")
        async with one_node(directory) as manager:
            times: dict[str, list[float]] = {"here": [], "there": []}
            for name, selector in (("here", "node=!b"), ("there", "node=b")):
                await manager.register_service(name, agent, config=ServiceConfig(place_on=(selector,)))
                await manager.start_service(name)  # what comes once: the bundle, the fork server
                await manager.stop_service(name)
            for _ in range(20):
                for name, taken in times.items():
                    began = time.perf_counter()
                    await manager.start_service(name)
                    taken.append(time.perf_counter() - began)
                    await manager.stop_service(name)
    here, there = (statistics.median(times[name]) for name in ("here", "there"))
    print(
        f"launch of a hosted agent, median of 20: here {here * 1e3:.1f} ms, on a node {there * 1e3:.1f} ms, "
        f"{there / here:.2f} ×"
    )


async def bundle(_: list[int]) -> None:
    """An agent beside which 50 MB lie that do not compress: its first start on a node, and a later one."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        small, large = agent_in(directory / "small"), agent_in(directory / "large")
        for number in range(50):
            (directory / "large" / f"{number}").write_bytes(os.urandom(10**6))
        await trio.sleep(3)  # what was written just now is packed at each start
        async with one_node(directory) as manager:
            for name, agent in (("small", small), ("large", large)):
                config = ServiceConfig(place_on=("node=b",))
                await manager.register_service(name, agent, config=config)
            taken = []
            for name in ("small", "large", "large"):
                began = time.perf_counter()
                await manager.start_service(name)
                taken.append(time.perf_counter() - began)
                await manager.stop_service(name)
    print(f"an agent with 50 MB, on a node: first start {taken[1]:.2f} s, the next {taken[2]:.2f} s")


FIGURES: dict[str, Callable[[list[int]], Awaitable[None]]] = {
    "starts": starts, "table": table, "seats": seats, "connections": connections,
    "launch": launch, "bundle": bundle,
}  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(FIGURES), help="which, with commas")
    parser.add_argument("--instances", default="1000,3000", help="how many to start")
    options = parser.parse_args()
    for name in options.only.split(","):
        await FIGURES[name]([int(count) for count in options.instances.split(",")])


if __name__ == "__main__":
    trio.run(main)
