"""A manager in this process, and workers that serve its gateway in processes of their own."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import define
from trio_websocket import WebSocketConnection

from agentmgr import AgentManager, ServiceConfig
from agentmgr.manager.worker_handle import WorkerHandle
from agentmgr.process import detached
from agentmgr.process.paths import RuntimePaths
from agentmgr.worker.pidfile import living
from tests.cli.conftest import here, shell  # noqa: F401  (fixtures)
from tests.conditions import read_to
from tests.proxy.conftest import connected, upgrade

# Says who it is, and how many sessions it has had at once at most.
COUNTING = """
import os, sys
import trio
from trio_websocket import ConnectionClosed, serve_websocket

live = most = 0

async def serve(request):
    global live, most
    takes_seat = not dict(request.headers).get(b"user-agent", b"").startswith(b"agentmgr-probe/")
    live += takes_seat
    most = max(most, live)
    try:
        websocket = await request.accept()
        while True:
            await websocket.get_message()
            await websocket.send_message(f"{os.getpid()} {most}")
    except ConnectionClosed:
        pass
    finally:
        live -= takes_seat

trio.run(serve_websocket, serve, "127.0.0.1", int(sys.argv[1]), None)
"""


@define
class Site:
    """A manager whose gateway is served by workers."""

    manager: AgentManager
    port: int
    clients: AsyncExitStack

    @property
    def workers(self) -> list[WorkerHandle]:
        return [worker for worker in self.manager._live().worker_manager if worker.link is not None]

    @property
    def url(self) -> str:
        return f"ws://localhost:{self.port}"

    @property
    def known(self) -> set[str]:
        """The connections that the workers have reported, those too that are not linked just now."""
        return set(self._whose)

    @property
    def _whose(self) -> dict[str, int]:
        """The pid of the worker of each connection."""
        workers = self.manager._live().worker_manager
        return {connection_id: worker.pid for worker in workers for connection_id in worker.connections}

    async def client(self, path: str = "/") -> WebSocketConnection:
        """A client whose connection is reported."""
        before = self.known
        websocket = await self.clients.enter_async_context(connected(self.url + path))
        await eventually(lambda: self.known - before)
        return websocket

    async def refusal(self, path: str = "/") -> int:
        """The status that a client is refused with."""
        async with await trio.open_tcp_stream("localhost", self.port) as stream:
            await stream.send_all(upgrade(path))
            status = int((await read_to(stream, b"\r\n\r\n")).split()[1])
        assert status >= 400
        return status

    async def each_worker_serves(self) -> None:
        """Returns when each has served a client. One comes at a time, so that none waits for a seat."""
        seen: set[int] = set()
        while len(seen) < len(self.workers):
            before = self.known
            websocket = await self.client()
            (new,) = self.known - before
            seen.add(self._whose[new])
            await websocket.aclose()
            await eventually(lambda: not self.known)

    async def clients_of_each(self, path: str = "/") -> dict[int, list[WebSocketConnection]]:
        """Clients of every worker, by its pid: the kernel decides who gets whom, so there are several."""
        found: dict[int, list[WebSocketConnection]] = {worker.pid: [] for worker in self.workers}
        while not all(found.values()):
            before = self.known
            websocket = await self.client(path)
            (new,) = self.known - before
            found.setdefault(self._whose[new], []).append(websocket)
        return found


async def eventually(condition: Callable[[], object], within_s: float = 60) -> None:
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def said(websocket: WebSocketConnection, text: str = "?") -> str:
    with trio.fail_after(60):
        await websocket.send_message(text)
        answer = await websocket.get_message()
    assert isinstance(answer, str)
    return answer


def cut_link(pid: int) -> None:
    """Shuts down this process's connections with that one: a manager's with its worker."""
    peers = struct.Struct("3i")  # struct ucred: pid, uid, gid
    for link in Path("/proc/self/fd").iterdir():
        if link.is_socket():
            with socket.socket(fileno=os.dup(int(link.name))) as sock:
                if sock.family == socket.AF_UNIX:
                    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, peers.size)
                    if peers.unpack(credentials)[0] == pid:
                        sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def _fork_servers_fork(fork_servers_fork: None) -> None:
    pass


@pytest.fixture
def paths(tmp_path: Path) -> RuntimePaths:
    return RuntimePaths.of(tmp_path / "agent_manager.db")


@pytest.fixture(autouse=True)
def no_worker_is_left(paths: RuntimePaths) -> Iterator[None]:
    yield
    left = living(paths.workers)
    for mark in left:
        os.kill(mark.pid, 9)
    assert not left


def _running(manager: AgentManager) -> int:
    return sum(instance.status == "running" for instance in manager.get_service("counting").instances)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Any) -> Any:
    """Opens one: `async with site(max_sessions=3) as s`; its workers are forks."""
    monkeypatch.setattr(detached, "subprocess", SimpleNamespace(Popen=forks))
    (tmp_path / "counting.py").write_text(COUNTING)

    @asynccontextmanager
    async def opened(workers: int = 2, **config: Any) -> AsyncIterator[Site]:
        command = (sys.executable, str(tmp_path / "counting.py"), "{port}")
        async with AgentManager(tmp_path / "agent_manager.db") as manager, trio.open_nursery() as nursery:
            await manager.register_service(
                "counting", command=command, config=ServiceConfig(**config), auto_start=True
            )
            port = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=workers))
            instances = manager.get_service("counting").config.instances
            await eventually(lambda: _running(manager) == instances)
            await manager._live().publisher.published()
            async with AsyncExitStack() as clients:
                yield Site(manager, port, clients)
            nursery.cancel_scope.cancel()

    return opened
