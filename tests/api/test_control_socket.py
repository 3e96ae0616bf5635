"""The manager's own socket outlives its file."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from agentmgr import AgentManager
from agentmgr.api import serve_control
from agentmgr.client import ManagerClient
from agentmgr.models import RoutingRule
from agentmgr.process import control_socket
from agentmgr.process.paths import RuntimePaths


class Said(logging.Handler):
    """Sets an event when a record has these words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words
        self.event = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.event.set()


@pytest.mark.parametrize(
    "take_away", [lambda p: p.control_socket.unlink(), lambda p: shutil.rmtree(p.directory)]
)
async def test_a_socket_file_that_is_deleted_is_made_again_and_nobody_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take_away: Callable[[RuntimePaths], None]
) -> None:
    monkeypatch.setattr(control_socket, "LOOK_S", 0.01)
    said = Said("control.sock was deleted; made again")
    logging.getLogger("agentmgr.process.control_socket").addHandler(said)
    with trio.fail_after(60):
        async with AgentManager(tmp_path / "a.db") as manager, trio.open_nursery() as nursery:
            path = manager.paths.control_socket
            await nursery.start(partial(serve_control, manager, path))
            async with ManagerClient(path) as before, before.events() as events:
                take_away(manager.paths)
                await said.event.wait()
                async with ManagerClient(path) as after:
                    assert (await after.get_info())["pid"] == (await before.get_info())["pid"]
                    await after.create_routing_rule(RoutingRule("zh"))
                async for event in events:
                    if event.kind == "rule.created":
                        break
            assert path.stat().st_mode & 0o777 == 0o600
            nursery.cancel_scope.cancel()
    logging.getLogger("agentmgr.process.control_socket").removeHandler(said)
    assert not path.exists()


@pytest.mark.parametrize("length", [20, 100, 200])
async def test_a_database_with_a_long_path_has_its_sockets_beside_it(tmp_path: Path, length: int) -> None:
    directory = tmp_path / ("ü" * (length // 2))
    directory.mkdir()
    before = os.listdir("/proc/self/fd")
    async with AgentManager(directory / "a.db") as manager, trio.open_nursery() as nursery:
        path = manager.paths.control_socket
        assert path == directory / "a.db.d" / "control.sock"
        await nursery.start(partial(serve_control, manager, path))
        async with ManagerClient(path) as client:
            assert (await client.get_info())["pid"] == os.getpid()
        assert path.is_socket()
        assert manager.paths.worker_socket.is_socket()
        nursery.cancel_scope.cancel()
    assert not path.exists()
    assert os.listdir("/proc/self/fd") == before


async def test_more_clients_at_once_than_the_listener_has_room_for_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "_BACKLOG", 1)
    path = tmp_path / "s"
    with control_socket.control_listener(path) as listener, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            connected: list[trio.SocketStream] = []

            async def come() -> None:
                connected.append(await control_socket.connect(path))

            for _ in range(10):
                nursery.start_soon(come)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert 0 < len(connected) < 10
            accepted = [await listener.accept() for _ in range(10)]
        for stream in (*connected, *accepted):
            await stream.aclose()
