"""A host that is killed with SIGKILL, and the next one on the same journal: real processes and sockets."""

import os
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import trio

from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client

AGENT = """
import trio

async def create_agent():
    return agent

async def agent(message, session):
    session.state["turns"] = session.state.get("turns", 0) + 1
    for number in range(int(message)):
        await session.emit("agent.partial_answer", f"{number} ")
        await trio.sleep(0.002)
    yield f"turn {session.state['turns']}"
"""


@asynccontextmanager
async def host(tmp_path, *options):
    """A host process; yields its URL and the process. It is killed at the end."""
    (tmp_path / "agent.py").write_text(AGENT)
    words = [sys.executable, "-m", "agentmgr", "serve", str(tmp_path / "agent.py"), "--port", "0"]
    words += ["--journal", str(tmp_path / "sessions.db"), *options]
    process = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        said = b""
        while b"\n" not in said:
            said += await process.stdout.receive_some() or pytest.fail("the host did not start")
        yield said.decode().split("answers at ")[1].split(";")[0], process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


async def read_on(client, events):
    """Takes in events until the connection is gone."""
    try:
        while True:
            event = await client.receive()
            if "seq" in event:
                events.append(event)
    except (trio.EndOfChannel, trio.BrokenResourceError):
        pass


@pytest.mark.usefixtures("commands_fork")
@pytest.mark.parametrize("policy", ["report", "retry"])
async def test_kills_while_a_client_streams_lose_nothing_and_repeat_nothing(tmp_path, policy):
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print("SEED", seed)
    rand = random.Random(seed)
    events, sent, ended = [], 0, {}
    session_id = None
    for _ in range(int(os.environ.get("KILLS", 4))):
        async with host(tmp_path, "--on-crash", policy, "--max-turn-attempts", "100") as (url, process):
            if session_id is None:  # there has to be one for what follows
                async with bare_client(url) as client:
                    session_id = await client.open()
                    events += [event for event in client.events if "seq" in event]
            with trio.move_on_after(rand.uniform(0.1, 0.6)):
                async with bare_client(url) as client:
                    await client.say("user.reconnect", session_id=session_id, last_seq=events[-1]["seq"])
                    for _ in range(2):
                        await client.say("user.message", content="40", step_id=f"step {sent}")
                        sent += 1
                    await read_on(client, events)
            process.send_signal(signal.SIGKILL)
    async with host(tmp_path) as (url, _), bare_client(url) as client:
        await client.say("user.reconnect", session_id=session_id, last_seq=events[-1]["seq"])
        for step in range(sent):  # what was on its way may have been lost: a client sends it again
            await client.say("user.message", content="3", step_id=f"step {step}")
        refused = 0
        with trio.fail_after(60):
            while len(ended) < sent:
                event = await client.receive()
                if "seq" in event:
                    events.append(event)
                refused += event["event"] == "system.error" and event["content"]["code"] == "duplicate"
                ended = {e["step_id"]: e for e in events if e["event"] in TURN_ENDS}
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len([e for e in events if e["event"] in TURN_ENDS]) == sent
    if policy == "retry":
        assert {e["event"] for e in ended.values()} <= {"agent.final_answer", "agent.error"}
