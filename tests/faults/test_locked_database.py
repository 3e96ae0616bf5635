"""A database that does not take what is written, with all of the manager around it."""

import os
import sqlite3
import sys
import threading
from contextlib import closing, contextmanager

import pytest
import trio

from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig
from agentmgr.supervisor import recorder
from tests.proxy.conftest import connected
from tests.supervisor.conftest import CHILD


@contextmanager
def locked(manager):
    with closing(sqlite3.connect(manager.paths.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def slow_fsync(manager):
    """Each commit waits for the disk, in SQLite's own call, until the block ends."""
    let_go = threading.Event()
    db = manager._live().store._db
    db.set_trace_callback(lambda statement: statement == "COMMIT" and let_go.wait(20))
    try:
        yield
    finally:
        let_go.set()


@pytest.mark.parametrize("trouble", [locked, slow_fsync])
async def test_instances_come_back_and_clients_are_served_meanwhile(tmp_path, monkeypatch, trouble):
    monkeypatch.setattr(recorder, "PATIENCE_S", 0.2)
    command = (sys.executable, "-S", str(CHILD), "--port", "{port}")
    config = ServiceConfig(restart_delay=0, stop_timeout=1)
    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        service = await manager.register_service("echo", command=command, config=config, auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        with trouble(manager):
            with manager.subscribe() as events, trio.fail_after(60):
                os.kill(service.instances[0].pid, 9)
                async for event in events:
                    if event.kind == "instance.running":
                        break
                async with connected(f"ws://localhost:{port}/services/echo") as client:
                    await client.send_message("hello")
                    assert await client.get_message() == "hello"
        nursery.cancel_scope.cancel()
