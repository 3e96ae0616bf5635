"""Clients without a line that would reconnect, and agents that are killed under them."""

import json
import os
import signal
from random import Random

import pytest
import trio
from trio_websocket import ConnectionClosed

from agentmgr import AgentManager
from agentmgr.models import ServiceConfig
from agentmgr.models.host_config import Sessions
from tests.faults.seamless import kill_under_clients
from tests.proxy.conftest import connected


async def test_kills_and_restarts_under_clients_are_not_noticed(tmp_path):
    seed = int(os.environ.get("SEED", Random().randrange(10**6)))
    print("SEED", seed)
    count = await kill_under_clients(tmp_path, kills=8, draw=Random(seed), clients=3, restarts=0.25)
    assert count["resumed"] > 0


@pytest.mark.parametrize("config", [{"sessions": Sessions.MEMORY}, {"seamless": False}])
async def test_what_is_not_to_be_resumed_is_closed_with_1012(tmp_path, config):
    (tmp_path / "agent.py").write_text(
        "def create_agent():\n    async def answer(message):\n        return message\n    return answer\n"
    )
    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        service = await manager.register_service(
            "agent", str(tmp_path / "agent.py"), config=ServiceConfig(**config), auto_start=True
        )
        port = await nursery.start(manager.serve_proxy, "127.0.0.1", 0)
        async with connected(f"ws://127.0.0.1:{port}") as websocket:
            await websocket.send_message(json.dumps({"event": "user.message", "content": "hi"}))
            await websocket.get_message()
            os.kill(service.instances[0].pid, signal.SIGKILL)
            with trio.fail_after(30), pytest.raises(ConnectionClosed):
                while True:
                    await websocket.get_message()
        assert websocket.closed.code == 1012
        nursery.cancel_scope.cancel()


async def test_a_client_that_never_pauses_does_not_hold_a_restart(tmp_path):
    (tmp_path / "agent.py").write_text(
        "def create_agent():\n    async def answer(message):\n        return message\n    return answer\n"
    )
    async with AgentManager(tmp_path / "manager.db") as manager, trio.open_nursery() as nursery:
        service = await manager.register_service(
            "agent", str(tmp_path / "agent.py"), config=ServiceConfig(drain_timeout=120), auto_start=True
        )
        port = await nursery.start(manager.serve_proxy, "127.0.0.1", 0)
        # The client is ended before its connection is closed: it would meet a closed one else.
        async with connected(f"ws://127.0.0.1:{port}") as websocket, trio.open_nursery() as clients:

            async def ask_without_a_pause(task_status):
                for number in range(10**6):
                    await websocket.send_message(f"message {number}")
                    assert await websocket.get_message() == f"message {number}"
                    if number == 10:
                        task_status.started()

            await clients.start(ask_without_a_pause)
            with trio.fail_after(60):
                await manager.restart_service("agent")
            [instance] = manager.get_service("agent").instances
            assert instance.pid != service.instances[0].pid
            clients.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
