"""A conversation through the gateway, while the network breaks: every process is a real one."""

import json
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from tests.terminal import Terminal

PIECES = 400
AGENT = f"""
import trio

def create_agent():
    async def count(message):
        for number in range({PIECES}):
            yield f"{{number}} "
            await trio.sleep(0.002)

    return count
"""


class Cable:
    """A way to a port of this machine that can be cut."""

    def __init__(self, port: int, nursery: trio.Nursery) -> None:
        self._port = port
        self._nursery = nursery
        self._ends: list[trio.SocketStream] = []
        self._came = trio.Event()
        self.made = 0  #: connections

    async def carry(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("localhost", self._port)
        self._ends += [near, far]
        self.made += 1
        self._came.set()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with near, far, trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, near, far)
                nursery.start_soon(self._pass_on, far, near)

    async def _pass_on(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await target.send_all(data)
            await target.send_eof()

    def cut(self) -> None:
        """Both ends see a reset, and lose what was under way."""
        for end in self._ends:
            with suppress(OSError):  # closed already
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.socket.close()
        self._ends.clear()

    async def cut_and_come_back(self) -> None:
        """Returns when somebody has connected again."""
        self._came = trio.Event()
        self.cut()
        await self._came.wait()


@asynccontextmanager
async def cable_to(port: int) -> AsyncIterator[tuple[str, Cable]]:
    async with trio.open_nursery() as nursery:
        cable = Cable(port, nursery)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, cable.carry, [listener])
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", cable
        cable.cut()
        nursery.cancel_scope.cancel()


async def test_an_answer_streams_on_over_cuts_and_a_hanging_gateway(terminal: Terminal) -> None:
    (terminal.directory / "count.py").write_text(AGENT)
    terminal.run("register", "count", "count.py", "--auto-start")
    gateway = terminal.start("proxy", "--port", "0").wait_for(r"ws://localhost:\d+")
    manager = terminal.json("info")["manager"]["pid"]
    pieces = []
    async with cable_to(int(gateway.rpartition(":")[2])) as (url, cable):
        chat = terminal.start("chat", url, "--raw", "--once", "go")
        while line := await trio.to_thread.run_sync(chat.line):
            event = json.loads(line)
            if event["event"] == "agent.final_answer":
                answer = event["content"]
            if event["event"] != "agent.partial_answer":
                continue
            pieces.append(event["content"])
            if len(pieces) in (20, 40):
                await cable.cut_and_come_back()  # else the next cut may find nothing to cut
            if len(pieces) == 60:
                os.kill(manager, signal.SIGSTOP)
                await cable.cut_and_come_back()
                os.kill(manager, signal.SIGCONT)
        assert cable.made >= 4
    assert chat.wait() == 0
    expected = [f"{number} " for number in range(PIECES)]
    assert len(pieces) == PIECES
    assert pieces == expected
    assert answer == "".join(expected)
    terminal.run("shutdown")
