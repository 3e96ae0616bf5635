"""The Vercel AI SDK (`.ci/node-clients` installs it): it streams, holds a conversation and approves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import trio

from agentmgr.agent import thinking

INSTALLED = os.environ.get("AGENTMGR_TEST_NODE")


async def agent(message, session):
    if message == "count":
        yield thinking("hm")
        for number in range(20):
            yield f"<{number}>"
            await trio.sleep(0.02)
    elif message == "delete":
        yield "gone" if await session.confirm("rm", {}, message="Really?") else "kept"
    elif message == "fail":
        raise ValueError("bad")
    else:
        yield f"{message} {len(session.history)}"


@pytest.mark.skipif(INSTALLED is None, reason="runs with AGENTMGR_TEST_NODE alone, see .ci/node-clients")
async def test_it_streams_converses_and_approves_with_both_protocols(stage_of):
    assert INSTALLED is not None
    script = shutil.copy(Path(__file__).with_name("ai_sdk.mjs"), INSTALLED)  # beside what it imports
    async with stage_of(agent) as stage:
        with trio.fail_after(60):
            done = await trio.run_process(["node", script, stage.url], capture_stdout=True)
        await stage.at_base()
    counted = "".join(f"<{number}>" for number in range(20))
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        [True, counted, "hm", "stop"],
        ["one 0"],
        ["Really? [yes/no]"],
        ["gone"],
        ["two 4"],
        ["AI_APICallError", 424],
        [True, counted, "hm", "stop"],
        ["one 0"],
        [""],
        ["gone"],
        ["two 4"],
        ["AI_APICallError", 400],
    ]
