"""`python -m agentmgr.agent` as the supervisor runs it: a real process, an inherited socket, signals."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from agentmgr.core.proof import HEALTH_PATH, proof
from agentmgr.testing.agents import bare_client

AGENT = """
import colorsys, logging, os, sys
print("imported")
logging.getLogger("mine").info("a log line")

async def agent(message, session):
    print("heard", message)
    if message == "env":
        return os.environ.get("AGENTMGR_SERVICE")
    if message == "saw":
        import trio
        trio.lowlevel.current_task().parent_nursery.cancel_scope.cancel()
    if message == "sleep":
        import trio
        await trio.sleep_forever()
    return message
"""


@pytest.fixture
def agent_file(tmp_path):
    (tmp_path / "agent.py").write_text(AGENT)
    return tmp_path / "agent.py"


@asynccontextmanager
async def spawned(path, *options, log=None):
    """A host on an inherited socket; yields its process and its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    environment = {
        **os.environ,
        "AGENTMGR_INSTANCE_TOKEN": "s3cret",
        "AGENTMGR_SERVICE": "mine",
        "PYTHONUNBUFFERED": "1",
    }
    output = log.open("ab") if log else subprocess.DEVNULL
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "agentmgr.agent", str(path), "--fd", str(listener.fileno()), *options],
        pass_fds=[listener.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        with trio.fail_after(60):
            yield process, f"ws://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        listener.close()
        if log:
            output.close()


async def test_a_host_proves_itself_serves_and_ends_at_sigterm(agent_file, tmp_path):
    log = tmp_path / "log"
    async with spawned(agent_file, "--max-sessions", "2", log=log) as (process, url):
        async with bare_client(f"{url}{HEALTH_PATH}?challenge=00ff") as prober:
            report = json.loads(await prober.websocket.get_message())
        assert report.pop("quiet_s") >= 0
        assert report == {
            "proof": proof("s3cret", "00ff"), "status": "healthy", "detail": None, "sessions": 0, "turns": 0,
        }  # fmt: skip
        async with bare_client(f"{url}{HEALTH_PATH}?challenge=00ff&only=modules") as prober:
            loaded = json.loads(await prober.websocket.get_message())["modules"]
        assert {"colorsys", "trio_websocket", "agent"} & set(loaded) == {"colorsys"}, (
            "the library's, not ours"
        )
        async with bare_client(url) as client:
            assert (await client.ask("env"))["content"] == "mine"
            await client.say("user.message", content="sleep")
            await client.say("ping")
            await client.until("pong")
            process.send_signal(signal.SIGTERM)
            assert (await client.until("agent.session_end"))["content"]["reason"] == "restart"
            with pytest.raises(trio.EndOfChannel):
                await client.receive()
            assert client.websocket.closed.code == 1012
        assert await process.wait() == 0
    text = log.read_text()
    assert "imported\n" in text
    assert "heard env\n" in text
    assert "a log line" in text
    assert "Traceback" not in text


async def test_a_host_whose_sessions_were_all_cancelled_by_its_agent_ends(agent_file, tmp_path):
    """It could answer probes, and no client."""
    log = tmp_path / "log"
    async with spawned(agent_file, log=log) as (process, url):
        async with bare_client(url) as client:
            await client.say("user.message", content="saw")
            assert await process.wait() == 1
    assert "the agent's code cancelled what all sessions run in" in log.read_text()


@pytest.mark.parametrize(
    ("text", "last_line"),
    [
        ("def create_agent(:\n", "SyntaxError"),
        ("def create_agent():\n    raise ValueError('no key')\n", "ValueError: no key"),
        ("", "it defines no function and no class"),
    ],
)
async def test_what_can_never_start_exits_78_with_the_authors_lines_last(tmp_path, text, last_line):
    path, log = tmp_path / "agent.py", tmp_path / "log"
    path.write_text(text)
    async with spawned(path, log=log) as (process, _):
        assert await process.wait() == 78
    assert last_line in log.read_text().splitlines()[-1]


async def test_a_file_that_is_not_there_exits_78(tmp_path):
    async with spawned(tmp_path / "nope.py", log=tmp_path / "log") as (process, _):
        assert await process.wait() == 78
    assert "Agent factory file not found" in (tmp_path / "log").read_text()


async def test_the_process_may_be_frozen_and_thawed(agent_file):
    async with spawned(agent_file) as (process, url), bare_client(url) as client:
        await client.ask("hi")
        process.send_signal(signal.SIGSTOP)
        await client.say("user.message", content="later")
        process.send_signal(signal.SIGCONT)
        assert (await client.until("agent.final_answer"))["content"] == "later"


ASYNCIO_AGENT = """
import asyncio, threading, time

async def create_agent():
    {asyncio_only}

    async def agent(message):
        await asyncio.sleep(0)
        if message == "thread":
            threading.Thread(target=time.sleep, args=[1000]).start()
        return type(asyncio.get_running_loop()).__name__

    return agent
"""


@pytest.mark.parametrize(
    ("line", "options"),
    [('RUNTIME = "asyncio"', []), ("", ["--runtime", "asyncio"]), ("# it imports asyncio, and not trio", [])],
)
async def test_an_asyncio_agent_runs_on_a_real_loop_and_its_threads_do_not_hold_the_exit(
    tmp_path, line, options
):
    path = tmp_path / "agent.py"
    path.write_text(line + ASYNCIO_AGENT.format(asyncio_only="asyncio.get_running_loop()"))
    async with spawned(path, *options) as (process, url):
        async with bare_client(url) as client:
            assert (await client.ask("thread"))["content"] == "_UnixSelectorEventLoop"
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(60):
            assert await process.wait() == 0


async def test_a_factory_that_needs_asyncio_is_told_which_switch_to_set(tmp_path):
    path, log = tmp_path / "agent.py", tmp_path / "log"
    path.write_text(ASYNCIO_AGENT.format(asyncio_only="asyncio.get_running_loop()"))
    async with spawned(path, "--runtime", "trio", log=log) as (process, _):
        assert await process.wait() == 78
    assert 'write RUNTIME = "asyncio" into the agent file' in log.read_text()
    assert "asyncio.get_running_loop()" in log.read_text()


async def test_an_agent_answers_although_nothing_that_it_prints_has_room(agent_file):
    async with spawned(agent_file, log=Path("/dev/full")) as (_, url), bare_client(url) as client:
        assert (await client.ask("hello"))["content"] == "hello"


FAILS = """
import asyncio

class Fatal(BaseException):
    def __str__(self):
        raise self

FORMS = {
    "fatal": Fatal,
    "interrupt": KeyboardInterrupt,
    "exit": SystemExit,
    "cancelled": asyncio.CancelledError,
}

class Agent:
    def on_message(self, session, message):
        if message in FORMS:
            raise FORMS[message]
        return message

    def on_session_end(self, session):
        raise Fatal

def create_agent():
    return Agent()
"""


@pytest.mark.parametrize("runtime", ["trio", "asyncio"])
@pytest.mark.parametrize("colour", ["def", "async def"])
async def test_no_exception_of_an_agents_ends_its_host_and_a_signal_does(tmp_path, runtime, colour):
    path, log = tmp_path / "agent.py", tmp_path / "log"
    path.write_text(FAILS.replace("    def on_", f"    {colour} on_"))
    async with spawned(path, "--runtime", runtime, log=log) as (process, url):
        async with bare_client(url) as client, bare_client(url) as other:
            assert (await other.ask("hi"))["content"] == "hi"
            for form in ("fatal", "interrupt", "exit", "cancelled"):
                assert (await client.ask(form))["event"] == "agent.error"
                assert (await client.ask("hi"))["content"] == "hi"
            assert (await other.ask("hi"))["content"] == "hi"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert "<exception str() failed>" in log.read_text()
