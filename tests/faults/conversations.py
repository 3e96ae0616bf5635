"""A manager is killed while clients converse through the gateway that `agentmgr daemon` has by default."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import trio

from agentmgr import AgentManager
from agentmgr.client import ManagerClient
from agentmgr.process.paths import RuntimePaths
from agentmgr.worker.pidfile import living
from tests.proxy.conftest import connected, eventually

_AGENT = """
def create_agent():
    async def answer(message):
        return f"echo: {message}"
    return answer
"""
_ANSWER_S = 30.0


async def kill_managers_under_clients(
    directory: Path, *, clients: int, kills: int, random: Random
) -> Counter[str]:
    """No connection is cut and each message is answered, without a manager too; the next one adopts all."""
    directory.mkdir(exist_ok=True)
    paths = RuntimePaths.of(directory / "agent_manager.db")
    (directory / "echo.py").write_text(_AGENT)
    async with AgentManager(paths.database) as manager:
        await manager.register_service("echo", str(directory / "echo.py"), auto_start=True, wait=False)
    answered = [0] * clients
    over = trio.Event()

    async def converse(client: int, url: str) -> None:
        async with connected(url) as websocket:
            while not over.is_set():
                text = f"{client} {answered[client]}"
                with trio.fail_after(_ANSWER_S):
                    await websocket.send_message(text)
                    assert await websocket.get_message() == f"echo: {text}"
                answered[client] += 1
                await trio.sleep(random.uniform(0, 0.05))

    async def each_goes_on() -> None:
        before = list(answered)
        await eventually(lambda: all(now > then for now, then in zip(answered, before, strict=True)))

    async def known() -> set[str]:
        async with ManagerClient(paths.control_socket) as manager:
            return {connection.connection_id for connection in await manager.list_connections()}

    daemon, url = await start_daemon(directory, 0)
    try:
        async with trio.open_nursery() as nursery:  # left when all clients have had their last answers
            for client in range(clients):
                nursery.start_soon(converse, client, url)
            await each_goes_on()
            connections, gateway = await known(), living(paths.workers)
            assert (len(connections), len(gateway)) == (clients, 1)
            for _ in range(kills):
                await trio.sleep(random.uniform(0, 0.2))
                daemon.kill()
                await daemon.wait()
                await each_goes_on()
                daemon, again = await start_daemon(directory, int(url.rpartition(":")[2]))
                await each_goes_on()
                assert (again, living(paths.workers), await known()) == (url, gateway, connections)
            over.set()
    finally:
        daemon.terminate()
        with trio.CancelScope(shield=True):
            await daemon.wait()
    assert daemon.returncode == 0
    assert not living(paths.workers)
    return Counter({"kills of managers under clients": kills, "messages answered": sum(answered)})


async def start_daemon(directory: Path, port: int) -> tuple[trio.Process, str]:
    """A daemon, and the address of its gateway."""
    words = (sys.executable, "-m", "agentmgr", "daemon", "--proxy-port", str(port))
    daemon = await trio.lowlevel.open_process(words, cwd=directory, stdout=subprocess.PIPE)
    assert daemon.stdout is not None
    said = b""
    while b"gateway at ws" not in said or not said.endswith(b"\n"):
        with trio.fail_after(_ANSWER_S):
            said += (more := await daemon.stdout.receive_some())
        assert more, said
    return daemon, said.decode().split()[-1]
