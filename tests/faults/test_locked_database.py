"""A database that somebody else has locked, with all of the manager around it."""

import os
import sqlite3
import sys
from contextlib import closing

import trio
from trio_websocket import open_websocket_url

from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig
from agentmgr.supervisor import journal
from tests.supervisor.conftest import CHILD


async def test_instances_come_back_and_clients_are_served_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "PATIENCE_S", 0.2)
    command = (sys.executable, "-S", str(CHILD), "--port", "{port}")
    config = ServiceConfig(restart_delay=0, stop_timeout=1)
    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        service = await manager.register_service("echo", command=command, config=config, auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        with closing(sqlite3.connect(tmp_path / "manager.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with manager.subscribe() as events, trio.fail_after(30):
                os.kill(service.instances[0].pid, 9)
                async for event in events:
                    if event.kind == "instance.running":
                        break
                async with open_websocket_url(f"ws://localhost:{port}/services/echo") as client:
                    await client.send_message("hello")
                    assert await client.get_message() == "hello"
            other.execute("ROLLBACK")
        nursery.cancel_scope.cancel()
