"""`run --reload` and `--watch`: new code is live when it is saved, and what does not start costs nothing."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from websockets.sync.client import connect

from agentmgr.cli import reloading
from agentmgr.client import open_session
from agentmgr.process.watching import Watched

AGENT = """
import words

async def agent(message, session):
    session.state["said"] = session.state.get("said", 0) + 1
    return f"{words.WORD} {session.state['said']}"
"""
PORTS = ("--proxy-port", "0", "--api-port", "0")


class Talk:
    """A client that counts what it said, as does the agent in the session."""

    def __init__(self, client: Any) -> None:
        self._client, self._said = client, 0

    def word(self) -> str:
        self._said += 1
        self._client.send("hello")
        word, said = str(self._client.recv(timeout=60)).split()
        assert int(said) == self._said, "the conversation went on"
        return word

    def until(self, wanted: str) -> None:
        """Talks all the while."""
        deadline = time.monotonic() + 60
        while self.word() != wanted:
            assert time.monotonic() < deadline


def save(path: Path, text: str) -> None:
    """As editors do: a new file takes the place of the old one."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(text)
    beside.rename(path)


def test_who_talks_under_run_is_answered_by_what_was_saved_last(shell: Any, write: Any) -> None:
    write("agent.py", AGENT)
    words = shell.directory / write("words.py", "WORD = 'one'\n")
    with shell.background("run", "agent.py", "--reload", *PORTS) as running:
        url = running.until("only agent").split()[-1]
        running.until("agent is running")
        with connect(url, open_timeout=60) as client:
            talk = Talk(client)
            assert talk.word() == "one"
            save(words, "WORD = 'two'\n")
            talk.until("two")
            running.until("agent runs the new code of words.py")
            save(words, "WORD = 'three\n")
            said = running.until("words.py is not live")
            assert "SyntaxError" in said
            assert "serves on" in said
            assert talk.word() == "two"
            assert "SyntaxError" in shell.ok("status", "agent")
            assert "agent: what was saved last does not run" in shell("list").stderr
            save(words, "WORD = 'four'\n")
            talk.until("four")
            running.until("agent runs the new code")
            service = json.loads(shell.ok("status", "agent", "--format", "json"))
            assert service["reload_error"] is None
            assert service["config"]["watch"] == []
    wanted = shell.ok("events", "age*", "--kind", "service.reload*", "--kind", "none", "--format", "json")
    assert [json.loads(line)["kind"] for line in wanted.splitlines()] == [
        "service.reloaded", "service.reload_failed", "service.reloaded",
    ]  # fmt: skip
    assert shell("events", "another").stderr == "no events\n"


def test_serve_reloads_too_and_sessions_go_on(shell: Any, write: Any) -> None:
    write("agent.py", AGENT)
    words = shell.directory / write("words.py", "WORD = 'one'\n")
    with shell.background("serve", "agent.py", "--reload", "--port", "0") as running:
        url = running.until("answers at").partition("answers at ")[2].partition(";")[0]

        async def talk() -> None:
            async with open_session(url) as session:
                assert await session.ask("hello") == "one 1"
                save(words, "WORD = 'two\n")
                said = await trio.to_thread.run_sync(running.until, "words.py is not live")
                assert "serves on" in said
                assert await session.ask("hello") == "one 2"
                save(words, "WORD = 'two'\n")
                await trio.to_thread.run_sync(running.until, "the new code of words.py is live")
                assert await session.ask("hello") == "two 3"

        trio.run(talk)
        assert running.interrupt()[0] == 0


def test_a_file_that_breaks_at_first_is_started_when_it_is_mended(shell: Any, write: Any) -> None:
    path = shell.directory / write("agent.py", "async def agent(message: return\n")
    with shell.background("run", "agent.py", "--reload", *PORTS) as running:
        running.until("agent did not start", "SyntaxError")
        save(path, "async def agent(message):\n    return 'mended'\n")
        running.until("agent runs the new code")
        assert shell.ok("chat", "agent", "--once", "hi").strip() == "mended"


def test_a_registered_service_is_watched_also_by_the_next_manager(shell: Any, write: Any) -> None:
    """What was saved while no manager ran is new, too; what the manager writes itself is not."""
    path = shell.directory / write("agent.py", "async def agent(message):\n    return 'one'\n")
    shell.ok("register", "agent", "agent.py", "--auto-start", "--watch")
    assert json.loads(shell.ok("status", "agent", "--format", "json"))["config"]["watch"] == ["auto"]
    assert "when its code is saved" in shell.ok("status", "agent")
    shell.ok("shutdown", "--leave-running")
    save(path, "async def agent(message):\n    return 'two'\n")
    with shell.background("daemon", *PORTS):
        reloaded(shell, 1)
        assert shell.ok("chat", "agent", "--once", "hi").strip() == "two"
        shell.ok("change", "agent", "--watch", ".")
        shell.ok("register", "other", "agent.py")  # in the database, which is in this directory
        (shell.directory / "prompt.txt").write_text("be kind")
        reloaded(shell, 2)
        shell.ok("change", "agent", "--watch", "nowhere")
        assert "nowhere, which it watches, is not there" in shell("doctor").stdout
        shell.ok("change", "agent", "--watch", "none")
        assert json.loads(shell.ok("status", "agent", "--format", "json"))["config"]["watch"] == []


def reloaded(shell: Any, times: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        events = [json.loads(line) for line in shell("events", "--format", "json").stdout.splitlines()]
        if (found := sum(event["kind"] == "service.reloaded" for event in events)) >= times:
            assert found == times
            return
        assert time.monotonic() < deadline, events
        time.sleep(0.05)


@pytest.mark.parametrize(
    "words", [("run", "my_agent.py", "--reload"), ("register", "a", "my_agent.py", "--watch")]
)
def test_without_watchfiles_it_says_what_to_install(
    shell: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.setattr("agentmgr.process.watching.find_spec", lambda name: None)
    said = shell.fails(*words)
    assert f"{sys.executable} -m pip install 'agentmgr-trio[reload]'" in said
    assert os.fspath(shell.directory) not in said


async def test_serve_goes_on_where_the_system_has_no_watches_left(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def watch(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "OS file watch limit reached")

    monkeypatch.setattr(reloading, "watch", watch)
    with trio.move_on_after(25):
        await reloading._Hosts([], ())._watch(Watched("/"))
    said = "files are not watched; trying again in 10 s: [Errno 28] OS file watch limit reached\n"
    assert capsys.readouterr().err == 3 * said
