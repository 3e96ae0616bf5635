"""A network within the test: no port, no interface, and it breaks on demand.

async with memory_network() as network:
    agent, front = network.listen("agent", 8001), network.listen("gateway", 9090)
    async with hosted(my_agent, listener=agent), trio.open_nursery() as nursery:
        gateway = Gateway(RoutingTable((Backend.at(agent.host, agent.port),)), dial=network.dial)
        await nursery.start(gateway.serve, [front])
        async with open_session(front.url, dial=network.dial) as session:
            front.cut_after(100)
            await session.ask("hello")  # makes its connection again, and misses nothing
        nursery.cancel_scope.cancel()

Connections are pairs of unix sockets, because the gateway's relay waits for file descriptors. What is written
to one is readable at once, so all this runs under trio's autojump clock: an hour of silence takes no time.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

_CHUNK_BYTES = 64 * 1024


@asynccontextmanager
async def memory_network() -> AsyncIterator[MemoryNetwork]:
    """A network without hosts; whatever is open on it ends with the block."""
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(nursery)
        try:
            yield network
        finally:
            network.close()
            nursery.cancel_scope.cancel()


class MemoryNetwork:
    """Made by `memory_network`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._listeners: dict[tuple[str, int], MemoryListener] = {}

    def listen(self, host: str, port: int) -> MemoryListener:
        """Raises `OSError` (EADDRINUSE) when there is a listener already."""
        if (host, port) in self._listeners:
            raise _os_error(errno.EADDRINUSE)
        listener = self._listeners[host, port] = MemoryListener(host, port, self._nursery)
        return listener

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        """Connects to the listener there: for `Gateway(dial=...)` and `open_session(dial=...)`.

        Raises `ConnectionRefusedError` where there is none, or when it is set to refuse.
        """
        listener = self._listeners.get((host, port))
        if listener is None:
            raise _os_error(errno.ECONNREFUSED)
        return await listener.connect()

    def close(self) -> None:
        """Ends all listeners."""
        for listener in self._listeners.values():
            listener.socket.close()


class MemoryListener(trio.abc.Listener[trio.SocketStream]):
    """Made by `MemoryNetwork.listen`: a listener, and the faults of the way to it."""

    def __init__(self, host: str, port: int, nursery: trio.Nursery) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind("")  # to a name that the kernel makes up, without a file (unix(7), autobind)
        sock.listen()
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self.host = host
        self.port = port
        self.latency_s = 0.0  #: how long each piece of data is under way, in both directions
        self._nursery = nursery
        self._connections: set[trio.CancelScope] = set()
        self._left_bytes = math.inf  # to come back from here until the next cut
        self._to_refuse = 0
        self._passing = trio.Event()
        self._passing.set()

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._listener.socket

    async def accept(self) -> trio.SocketStream:
        return await self._listener.accept()

    async def aclose(self) -> None:
        await self._listener.aclose()

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}"

    async def connect(self) -> trio.SocketStream:
        """Raises `ConnectionRefusedError`."""
        await self._passing.wait()
        if self._to_refuse:
            self._to_refuse -= 1
            raise _os_error(errno.ECONNREFUSED)
        far = trio.socket.socket(socket.AF_UNIX)
        try:
            await far.connect(self.socket.getsockname())
        except OSError:
            far.close()
            raise
        near, middle = trio.socket.socketpair()
        connection = trio.CancelScope()
        self._connections.add(connection)
        self._nursery.start_soon(self._carry, trio.SocketStream(middle), trio.SocketStream(far), connection)
        return trio.SocketStream(near)

    # Faults

    def refuse_next(self, times: int = 1) -> None:
        """So many attempts to connect fail; those that are connected stay."""
        self._to_refuse = times

    def cut(self) -> None:
        """Breaks all its connections, now. New ones can be made."""
        for connection in self._connections:
            connection.cancel()

    def cut_after(self, count_bytes: int) -> None:
        """Breaks all its connections when so many more bytes have come back from it, be that within a frame.

        Once: the connections made after that stay.
        """
        self._left_bytes = count_bytes

    def hang(self) -> None:
        """From now on nothing arrives, in neither direction; nothing is lost, and neither end notices."""
        if self._passing.is_set():
            self._passing = trio.Event()

    def resume(self) -> None:
        """Ends `hang`: what was held up arrives."""
        self._passing.set()

    async def _carry(
        self, near: trio.SocketStream, far: trio.SocketStream, connection: trio.CancelScope
    ) -> None:
        with near.socket, far.socket, connection:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, near, far, False)
                    nursery.start_soon(self._pass_on, far, near, True)
            except* trio.BrokenResourceError:
                pass  # one end is gone; now the other learns of it
            finally:
                self._connections.discard(connection)

    async def _pass_on(self, source: trio.SocketStream, target: trio.SocketStream, back: bool) -> None:
        while data := await source.receive_some(_CHUNK_BYTES):
            await trio.sleep(self.latency_s)
            await self._passing.wait()
            if back and len(data) >= self._left_bytes:
                await target.send_all(data[: int(self._left_bytes)])
                self._left_bytes = math.inf
                self.cut()
                await trio.lowlevel.checkpoint()
            self._left_bytes -= len(data) if back else 0
            await target.send_all(data)
        await target.send_eof()


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
