import os
from contextlib import asynccontextmanager

import pytest
import trio

from agentmgr.agent.adapt import adapt, produce
from agentmgr.agent.runtime import open_runtime
from agentmgr.journal.sqlite import open_journal
from agentmgr.models import Runtime
from agentmgr.testing.agents import bare_client, hosted

# The frameworks are not among the development dependencies: `tests/adapters/run` installs them elsewhere.
collect_ignore_glob = [] if os.environ.get("AGENTMGR_TEST_ADAPTERS") else ["test_*.py"]


@pytest.fixture
def in_two_hosts(tmp_path):
    """Has one conversation in two hosts, one after the other, on one journal; what was answered, and usage.

    `create_agent` is called for each, as in two processes.
    """

    @asynccontextmanager
    async def host(create_agent):
        async with (
            open_journal(tmp_path / "sessions.db", "ins_0000000000000001") as journal,
            trio.open_nursery() as nursery,
        ):
            runtime = await open_runtime(Runtime.ASYNCIO, nursery)
            made = adapt(await runtime.call(produce, create_agent), create_agent, runtime)
            async with hosted(made, journal=journal) as url:
                yield url
                url.sessions.leave_all()
                await url.sessions.all_left()
            nursery.cancel_scope.cancel()

    async def converse(create_agent, before, after):
        ends, used, session_id = [], [], None
        for texts in (before, after):
            async with host(create_agent) as url, bare_client(url) as client:
                for text in texts:
                    named = {} if session_id is None else {"session_id": session_id}
                    ends.append(await client.ask(text, **named))
                    session_id = session_id or client.session_id
                used += [event["content"] for event in client.events if event["event"] == "agent.usage"]
        assert {end["event"] for end in ends} == {"agent.final_answer"}, ends
        return [end["content"] for end in ends], used

    return converse


@pytest.fixture
def ask_as_a_chat_program():
    """Brings a history, instructions, an image and a file; says other instructions with its next message."""
    picture = {"kind": "image", "url": "data:image/png;base64,aW1hZ2U="}
    notes = {"kind": "file", "url": "data:text/plain;base64,bm90ZXM=", "name": "notes.txt"}
    history = [{"role": "user", "content": "my name is Ann"}, {"role": "assistant", "content": "hello Ann"}]

    async def ask(url):
        async with bare_client(url) as client:
            await client.say("user.create_session", content={"history": history})
            await client.until("agent.session_created")
            said = {"instructions": "be brief", "attachments": [picture, notes]}
            for text, metadata in (("look", said), ("and now?", {"instructions": "be kind"})):
                end = await client.ask(text, metadata=metadata, session_id=client.session_id)
                assert end["event"] == "agent.final_answer", end

    return ask
