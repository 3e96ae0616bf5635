"""Talks to an agent as an editor does: ACP over the stdin and stdout of `agentmgr acp`.

pip install agent-client-protocol
agentmgr run examples/streaming_agent.py      # in another terminal
python examples/acp_client.py                 # or: python examples/acp_client.py SERVICE --gateway ws://HOST:PORT
"""

import asyncio
import sys
from typing import Any

import acp
from acp.schema import AgentMessageChunk, AllowedOutcome, RequestPermissionResponse, ToolCallStart


class Editor(acp.Client):
    """Shows what the agent says, and allows what it asks."""

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        if isinstance(update, ToolCallStart):
            print(f"[{update.title}]")
        elif isinstance(update, AgentMessageChunk):
            print(update.content.text, end="", flush=True)

    async def request_permission(self, *_: Any, **__: Any) -> RequestPermissionResponse:
        return RequestPermissionResponse(outcome=AllowedOutcome(outcome="selected", option_id="allow"))


editor: Any = Editor  # to a type checker it lacks what this one never does, such as reading files


async def main(arguments: list[str]) -> None:
    words = ["-m", "agentmgr", "acp", *(arguments or ["streaming_agent"])]
    async with acp.spawn_agent_process(editor(), sys.executable, *words) as (agent, _):
        await agent.initialize(protocol_version=acp.PROTOCOL_VERSION)
        session = await agent.new_session(cwd="/", mcp_servers=[])
        for text in ("hello", "delete notes.txt"):
            print(f"> {text}")
            answer = await agent.prompt(session_id=session.session_id, prompt=[acp.text_block(text)])
            print(f"({answer.stop_reason})")


asyncio.run(main(sys.argv[1:]))
