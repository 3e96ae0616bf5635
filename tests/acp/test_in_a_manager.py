"""`agentmgr acp` with a whole manager: durable sessions, and everything killed that can be."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from acp import RequestError

from agentmgr.client import ManagerClient
from agentmgr.errors import AgentManagerError
from agentmgr.models.host_config import OnCrash
from agentmgr.process.paths import RuntimePaths
from tests.acp.conftest import edit
from tests.processes import end_all_in

AGENT = """
import trio

async def agent(message, session):
    if message == "rm":
        yield "gone" if await session.confirm("rm", {}, message="Really?") else "kept"
        return
    session.state["n"] = session.state.get("n", 0) + 1
    for number in range(30 if message == "slow" else 2):
        yield f"{number} "
        await trio.sleep(0.05)
    yield f"turn {session.state['n']}"
"""
WHOLE = "".join(f"{number} " for number in range(30))


class Machine:
    """A manager in a directory of its own. Its gateway gets another port each time that it starts."""

    def __init__(self, directory: Any) -> None:
        self.directory = directory
        self.paths = RuntimePaths.of(directory / "manager.db")
        self.words = "agent", "--db-path", str(self.paths.database)

    def run(self, *words: str) -> None:
        command = [sys.executable, "-m", "agentmgr", *words, "--db-path", str(self.paths.database)]
        subprocess.run(command, cwd=self.directory, check=True, capture_output=True, timeout=60)

    def start(self) -> None:
        command = [sys.executable, "-m", "agentmgr", "daemon", "--proxy-port", "0"]
        self._daemon = subprocess.Popen(
            [*command, "--db-path", self.paths.database],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill_everything(self) -> None:
        end_all_in(self.directory)
        self._daemon.wait()

    async def instances(self) -> list[int]:
        async with ManagerClient(self.paths.control_socket) as manager:
            return [instance.pid for instance in (await manager.get_service("agent")).instances]

    async def up(self) -> None:
        """Waits until the gateway is open."""
        with trio.fail_after(60):
            while True:
                with suppress(AgentManagerError):
                    async with ManagerClient(self.paths.control_socket) as manager:
                        if (await manager.get_info())["listeners"]:
                            return
                await trio.sleep(0.05)


@pytest.fixture
def machine_of(tmp_path):
    @asynccontextmanager
    async def open_machine(on_crash: OnCrash) -> AsyncIterator[Machine]:
        machine = Machine(tmp_path)
        (tmp_path / "agent.py").write_text(AGENT)
        machine.run("register", "agent", "agent.py", "--on-crash", on_crash)
        machine.start()
        try:
            await machine.up()
            await in_thread(machine.run, "start", "agent")
            yield machine
        finally:
            machine.kill_everything()

    return open_machine


async def in_thread(function: Any, *args: Any) -> Any:
    return await trio.to_thread.run_sync(function, *args)


@pytest.mark.parametrize("on_crash", list(OnCrash))
async def test_a_conversation_goes_on_whatever_is_killed(machine_of, on_crash):
    async def scenario(editor):
        session = await editor.new()
        assert await editor.say(session, "hi") == "end_turn"
        for kill in (kill_instance, kill_everything):
            prompt = asyncio.create_task(editor.say(session, "slow"))
            await editor.until(lambda: "5 " in editor.text())
            await asyncio.to_thread(kill)
            if on_crash is OnCrash.RETRY:
                assert await prompt == "end_turn"
                assert WHOLE in editor.text().rpartition("\n\n")[2]
            else:
                with pytest.raises(RequestError) as failed:
                    await prompt
                assert failed.value.data["code"] == "instance_lost"
            editor.updates.clear()
        assert await editor.say(session, "rm") == "end_turn"
        assert editor.story()[-1] == "says gone"
        return session

    def kill_instance():
        (pid,) = trio.run(machine.instances)
        os.kill(pid, signal.SIGKILL)

    def kill_everything():
        machine.kill_everything()
        machine.start()

    async def again(editor):
        await editor.agent.load_session(cwd="/", session_id=session, mcp_servers=[])
        asked = [line for line in editor.story() if line.startswith("user")]
        assert asked == ["user hi", "user slow", "user slow", "user rm"]
        assert editor.story()[-1] == "says gone"
        assert await editor.say(session, "hi") == "end_turn"

    async with machine_of(on_crash) as machine:
        session = await edit(scenario, *machine.words)
        await in_thread(kill_everything)
        await machine.up()
        await edit(again, *machine.words)


async def test_a_service_that_is_stopped_and_started(machine_of):
    async def scenario(editor):
        session = await editor.new()
        assert await editor.say(session, "hi") == "end_turn"
        await asyncio.to_thread(machine.run, "stop", "agent")
        with pytest.raises(RequestError) as refused:
            await editor.new()
        assert refused.value.data == {"code": "no_service_available"}
        prompt = asyncio.create_task(editor.say(session, "hi"))
        await asyncio.to_thread(machine.run, "start", "agent")
        assert await prompt == "end_turn"
        assert editor.text() == "0 1 turn 10 1 turn 2"

    async with machine_of(OnCrash.REPORT) as machine:
        await edit(scenario, *machine.words)
