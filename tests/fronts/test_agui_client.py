"""The clients of AG-UI that people have: that of npm (`.ci/node-clients` installs it), and the example."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import trio

from tests.fronts.conftest import Teller

INSTALLED = os.environ.get("AGENTMGR_TEST_NODE")
"""The directory where npm has installed `@ag-ui/client`."""


class Waits(Teller):
    async def __call__(self, message, session):
        if message == "wait":
            yield "Well. "
            while session.connected:  # noqa: ASYNC110  # not announced
                await trio.sleep(0.01)
            yield "on its own"
            return
        async for said in super().__call__(message, session):
            yield said


@pytest.mark.skipif(INSTALLED is None, reason="runs with AGENTMGR_TEST_NODE alone, see .ci/node-clients")
async def test_the_client_of_npm_talks_approves_and_attaches_again(stage_of):
    assert INSTALLED is not None
    script = Path(__file__).with_name("agui_client.mjs")
    copy = shutil.copy(script, INSTALLED)  # beside what it imports
    async with stage_of(Waits()) as stage:
        url = f"http://127.0.0.1:{stage.port}/agui/echo"
        with trio.fail_after(60):
            done = await trio.run_process(["node", copy, url], capture_stdout=True)
        await stage.at_base()
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        ["Well. 0 before"],
        [["Really?", "confirmation"]],
        [[], "deleted", "true"],
        ["deleted", "Well. on its own"],
        ["Well. 6 before", {"turns": 3}],
    ]


async def test_the_example(stage_of):
    examples = Path(__file__).parents[2] / "examples"
    served = runpy.run_path(str(examples / "streaming_agent.py"))["agent"]
    async with stage_of(served, names=["streaming_agent"]) as stage:
        address = f"http://127.0.0.1:{stage.port}/agui/streaming_agent"
        done = await trio.run_process(
            [sys.executable, str(examples / "agui_client.py"), address], capture_stdout=True
        )
    assert done.stdout.decode().splitlines() == [
        "> hello",
        "(looking for a file name)",
        "I know these files: notes.txt, todo.txt. Say: delete NAME. ",
        "> delete notes.txt",
        "(looking for a file name)",
        "Really delete notes.txt? yes",
        "[delete_file: deleted 8 bytes]",
        "Done: notes.txt is gone. ",
    ]
