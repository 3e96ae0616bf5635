"""Runs the Autobahn fuzzing client against two echo servers: straight, through the gateway, and across, which
is through a gateway and the gate of another node.

`tests/autobahn/run` installs the client and calls this. Exit code 1 when any verdict differs, where

* some verdicts depend on timing: whether a server still echoes what came before a fault is up to how many
  bytes it reads at once. Cases that differ are run again, and differ if no verdict was seen on both ways;
* trio-websocket drops a connection on which it finds a fault, without a close frame. To the gateway that may
  be an instance that was lost: it waits half a second for news of it, and says 1011. Some cases of group 6 do
  not wait so long. Where straight there is no close code and through the gateway 1011, that is only counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import evolve
from trio_websocket import ConnectionClosed, HandshakeError, wrap_server_stream
from websockets.asyncio.server import ServerConnection, serve

from agentmgr.ca import Authority
from agentmgr.core.routing import Backend, Gate, RoutingTable
from agentmgr.credentials import Credentials
from agentmgr.proxy import Gateway

HOST = "127.0.0.1"
NODES = ("nod_00000000000000aa", "nod_00000000000000bb")
WAYS = ("through", "across")
_TRIES = 6

Verdict = tuple[str, str, int | None]  # on the messages, on the closing, and the close code that came
Key = tuple[str, str]  # server and case
Verdicts = dict[Key, set[Verdict]]


async def serve_websockets() -> None:
    """An echo by the `websockets` library, with permessage-deflate, on a free port that it prints."""

    async def echo(websocket: ServerConnection) -> None:
        async for message in websocket:
            await websocket.send(message)

    async with serve(echo, HOST, 0, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


async def serve_wsproto() -> None:
    """An echo by trio-websocket, which is wsproto, without compression."""

    async def echo(stream: trio.SocketStream) -> None:
        try:
            async with stream, trio.open_nursery() as nursery:
                request = await wrap_server_stream(nursery, stream, max_message_size=2**30)
                websocket = await request.accept()
                while True:
                    await websocket.send_message(await websocket.get_message())
        except* (ConnectionClosed, HandshakeError, trio.BrokenResourceError):
            pass

    listeners = await trio.open_tcp_listeners(0, host=HOST)
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(echo, listeners)


@asynccontextmanager
async def backend(name: str) -> AsyncIterator[int]:
    """One of the two servers, in a process of its own: its port."""
    command = [sys.executable, __file__, "--serve", name]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        yield int(await process.stdout.receive_some())
    finally:
        process.terminate()
        await process.wait()


async def compare(wstest: list[str], reports: Path, cases: list[str]) -> int:
    async with backend("websockets") as first, backend("wsproto") as second, trio.open_nursery() as nursery:
        ports = {"websockets": first, "wsproto": second}
        instances = tuple(
            Backend(instance_id=name, service_id=name, service_name=name, host=HOST, port=port)
            for name, port in ports.items()
        )
        listeners = await trio.open_tcp_listeners(0, host=HOST)
        await nursery.start(partial(Gateway(RoutingTable(backends=instances)).serve, listeners))
        across = await two_nodes(instances, reports, nursery)
        ways = {"straight": {name: f"ws://{HOST}:{port}" for name, port in ports.items()}}
        for way, front in {"through": listeners[0].socket.getsockname()[1], "across": across}.items():
            ways[way] = {name: f"ws://{HOST}:{front}/services/{name}" for name in ports}
        seen = await judge(wstest, ways, reports, cases)
        for again in range(1, _TRIES):
            if not (differing := sorted({case for _, case in differences(seen)})):
                break
            more = await judge(wstest, ways, reports / f"again-{again}", differing)
            for way in ways:
                for key, verdicts in more[way].items():
                    seen[way][key] |= verdicts
        nursery.cancel_scope.cancel()
    return report(seen)


async def two_nodes(instances: tuple[Backend, ...], directory: Path, nursery: trio.Nursery) -> int:
    """The port of a gateway, whose instances are behind the gate of another one."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority.open(directory / "ca")
    gate_listeners = await trio.open_tcp_listeners(0, host=HOST)
    gates = {node_id: Gate(HOST, gate_listeners[0].socket.getsockname()[1]) for node_id in NODES}
    backends = tuple(evolve(backend, node_id=NODES[1]) for backend in instances)
    ports = []
    for node_id in NODES:
        credentials = Credentials(directory / node_id)
        credentials.directory.mkdir(exist_ok=True)
        credentials.keep(authority.issue(credentials.make_request(), node_id), authority.pem)
        gateway = Gateway(RoutingTable(backends, gates=gates), node_id=node_id, credentials=credentials)
        listeners = await trio.open_tcp_listeners(0, host=HOST)
        ports.append(listeners[0].socket.getsockname()[1])
        here = gate_listeners if node_id == NODES[1] else ()
        await nursery.start(partial(gateway.serve, listeners, gate_listeners=here))
    return int(ports[0])


async def judge(
    wstest: list[str], ways: dict[str, dict[str, str]], reports: Path, cases: list[str]
) -> dict[str, Verdicts]:
    """Runs these cases all ways at once."""
    async with trio.open_nursery() as nursery:
        for way, urls in ways.items():
            nursery.start_soon(run_cases, wstest, urls, reports / way, cases)
    return {way: verdicts(reports / way / "index.json") for way in ways}


async def run_cases(wstest: list[str], urls: dict[str, str], reports: Path, cases: list[str]) -> None:
    """Leaves the client's reports there; `index.json` has the verdicts by agent and case."""
    spec = {
        "outdir": str(reports),
        "servers": [{"agent": agent, "url": url} for agent, url in urls.items()],
        "cases": cases,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    reports.mkdir(parents=True, exist_ok=True)
    file = reports / "fuzzingclient.json"
    file.write_text(json.dumps(spec))
    with (reports / "output").open("wb") as output:
        command = [*wstest, "-m", "fuzzingclient", "-s", str(file)]
        await trio.run_process(command, stdout=output, stderr=subprocess.STDOUT)


def verdicts(index: Path) -> Verdicts:
    found = json.loads(index.read_text())
    return {
        (agent, case): {(verdict["behavior"], verdict["behaviorClose"], verdict["remoteCloseCode"])}
        for agent, cases in found.items()
        for case, verdict in cases.items()
    }


def differences(seen: dict[str, Verdicts]) -> list[Key]:
    """The cases of which no verdict was seen both straight and another way."""
    straight = seen["straight"]
    return [
        key
        for key in straight
        for way in WAYS
        if not any(same(one, other) for one in straight[key] for other in seen[way].get(key, ()))
    ]


def same(straight: Verdict, through: Verdict) -> bool:
    return straight == through or lost(straight, through)


def lost(straight: Verdict, through: Verdict) -> bool:
    """The server dropped the connection, and the gateway told that."""
    return straight[2] is None and through[2] == 1011


def report(seen: dict[str, Verdicts]) -> int:
    """Prints how the ways compare; returns the number of cases in which they differ."""
    straight = seen["straight"]
    for way in WAYS:
        there = seen[way]
        for server in dict.fromkeys(server for server, _ in straight):
            keys = [key for key in straight if key[0] == server]
            counts = Counter(" or ".join(sorted({verdict[0] for verdict in there[key]})) for key in keys)
            told = ", ".join(f"{n} {what}" for what, n in counts.most_common())
            print(f"{way}, {server}: {len(keys)} cases, {told}")
            dropped = sum(any(lost(a, b) for a in straight[key] for b in there[key]) for key in keys)
            if dropped:
                print(f"  in {dropped} cases the server dropped the connection, and the gateway said 1011")
    differing = differences(seen)
    for key in differing:
        print(f"  {' '.join(key)}: " + "; ".join(f"{way} {found[key]}" for way, found in seen.items()))
    return len(differing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=["websockets", "wsproto"])
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--cases", default="*")
    parser.add_argument("wstest", nargs="*")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # half of the cases are errors on purpose
    if arguments.serve == "websockets":
        asyncio.run(serve_websockets())
    elif arguments.serve == "wsproto":
        trio.run(serve_wsproto)
    differing = trio.run(compare, arguments.wstest, arguments.reports.resolve(), arguments.cases.split())
    print("all verdicts are equal" if not differing else f"{differing} verdicts differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
