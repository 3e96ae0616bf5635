"""The example agents, as a stranger runs them: a real process, real sockets, no network."""

import json
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import websockets.sync.client

from agentmgr.client.session import open_session
from agentmgr.errors import TurnFailed

EXAMPLES = Path(__file__).parents[2] / "examples"


GUIDE_EXAMPLE = """
from myagent import create_react_agent
from myagent.tool import BaseTool, ToolResult

class EchoTool(BaseTool):
    name: str = "echo"
    description: str = "Echo back a message"

    async def execute(self, message: str) -> ToolResult:
        return ToolResult(
            success=True,
            content=f"Echo: {message}"
        )

def create_agent():
    return create_react_agent(
        name="echo-agent",
        tools=[EchoTool()],
        system_prompt="You are an echo agent.",
    )
"""


@asynccontextmanager
async def running(path, **environment):
    """`python -m agentmgr.agent EXAMPLE` on a free port; yields its URL."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "agentmgr.agent", str(EXAMPLES / path)],
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        with trio.fail_after(60):
            said = b""
            while not (url := re.search(rb"ws://\S+", said)):
                said += await process.stderr.receive_some() or pytest.fail(said.decode())
            yield url.group().decode()
    finally:
        process.kill()
        await process.wait()


async def test_the_echo_agent():
    async with running("echo_agent.py") as url, open_session(url) as session:
        assert await session.ask("hello") == "You said: hello"


async def test_the_streaming_agent_asks_before_it_deletes():
    async with running("streaming_agent.py") as url, open_session(url) as session:
        assert await session.ask("delete notes.txt") == "All right, notes.txt stays. "
        turn = await session.send("delete notes.txt")
        seen = []
        async for event in turn:
            seen.append(event.event)
            if event.event == "agent.user_confirm":
                await session.respond(event, True)
        assert event.content == "Done: notes.txt is gone. "
        assert [name for name in seen if "tool" in name] == ["agent.tool_call", "agent.tool_result"]
        assert seen.count("agent.partial_answer") == 4
        assert "todo.txt" in await session.ask("hello")


async def test_the_notes_agent_shows_the_whole_interface():
    async with running("notes_agent.py") as url, open_session(url) as session:
        turn = await session.send("add buy milk")
        events = [event async for event in turn]
        assert [event.event for event in events] == [
            "agent.tool_call", "agent.tool_result", "notes.changed", "agent.final_answer",
        ]  # fmt: skip
        assert await session.ask("add call mum") == "That is note 2."
        assert await session.ask("list") == "buy milk\ncall mum\n"
        assert await session.ask("clear") == "They stay."
        assert await session.ask("count") == {"notes": 2, "sessions": 1}
        assert await session.ask("clear", confirm=lambda question: True) == "They are gone."
        assert await session.ask("list") == "There are no notes.\n"
        assert (await session.ask("repeat"))[:3] == ["add buy milk", "add call mum", "list"]
        assert await session.ask("who") == "someone at 127.0.0.1"
        with pytest.raises(TurnFailed, match="ValueError"):
            await session.ask("fly")
        await session.request_state()
        while (event := await session.receive()).event != "agent.state_exported":
            pass
        assert event.content["state"] == {"notes": []}


async def test_the_websocket_agent():
    def shouted(url):
        with websockets.sync.client.connect(url) as connection:
            connection.send("hello")
            return connection.recv(timeout=60)

    async with running("websocket_agent.py") as url:
        assert await trio.to_thread.run_sync(shouted, url) == "HELLO"


async def test_the_guides_own_agent_works_as_it_is_written_and_each_session_has_its_own(tmp_path):
    (tmp_path / "my_agent.py").write_text(GUIDE_EXAMPLE)
    package = str(Path(__file__).parent / "stand_in")
    async with running(tmp_path / "my_agent.py", PYTHONPATH=package) as url:
        async with open_session(url) as one, open_session(url) as two:
            assert await one.ask("hello") == "Echo: hello (1)"
            assert await one.ask("again") == "Echo: again (2)"
            assert await two.ask("hello") == "Echo: hello (1)"


async def test_any_websocket_client_can_talk_plain_text_and_events():
    def plain(url):
        with websockets.sync.client.connect(url) as connection:
            connection.send("hello")
            first = connection.recv(timeout=60)
            connection.send("again")
            return first, connection.recv(timeout=60)

    def events(url):
        with websockets.sync.client.connect(url) as connection:
            connection.send(json.dumps({"event": "user.message", "content": "hello"}))
            names = []
            while not names or names[-1] != "agent.final_answer":
                names.append(json.loads(connection.recv(timeout=60))["event"])
            return names

    async with running("echo_agent.py") as url:
        assert await trio.to_thread.run_sync(plain, url) == ("You said: hello", "You said: again")
        assert await trio.to_thread.run_sync(events, url) == [
            "system.connected", "agent.session_created", "agent.final_answer",
        ]  # fmt: skip
