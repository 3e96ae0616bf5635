"""`agentmgr chat` finds the agent by the manager that runs, and outlives a restart of it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest


def test_chat_asks_the_manager_where_to_go(shell: Any, write: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    assert shell.ok("chat", "echo", "--once", "hi") == "echo: hi\n", "without a gateway, directly"
    assert "agentmgr proxy" in shell.fails("chat", "--once", "hi")
    assert "agentmgr list" in shell.fails("chat", "nosuch", "--once", "hi")
    with shell.background("proxy", "--port", "0") as proxy:
        proxy.until("gateway at")
        assert shell.ok("chat", "--once", "hi") == "echo: hi\n"
        assert shell.ok("chat", "echo", "--once", "hi") == "echo: hi\n"
        shell.ok("stop", "echo")
        assert "no service is running" in shell.fails("chat", "--once", "hi")
    assert "agentmgr start echo" in shell.fails("chat", "echo", "--once", "hi")


@pytest.mark.parametrize("gateway", [True, False])
@pytest.mark.parametrize("mode", ["durable", "memory"])
def test_a_chat_goes_on_after_a_restart(shell: Any, gateway: bool, mode: str) -> None:
    shell.ok("register", "echo", "my_agent.py", "--sessions", mode, "--auto-start")
    with ExitStack() as stack:
        if gateway:
            stack.enter_context(shell.background("proxy", "--port", "0")).until("gateway at")
        chat = stack.enter_context(
            shell.popen(
                [sys.executable, "-m", "agentmgr", "chat", "echo"],
                cwd=shell.directory,
                env=shell.environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        assert chat.stdin is not None
        assert chat.stdout is not None
        assert chat.stderr is not None
        chat.stdin.write("one\n")
        chat.stdin.flush()
        assert chat.stdout.readline() == "echo: one\n"
        shell.ok("restart", "echo")
        if mode == "memory":
            assert "new session" in chat.stderr.readline()
        chat.stdin.write("two\n")
        chat.stdin.flush()
        assert "echo: two\n" in iter(chat.stdout.readline, "")
        chat.stdin.close()
        assert chat.wait(60) == 0
        assert "new session" not in chat.stderr.read()


@pytest.mark.parametrize("gateway", [True, False])
def test_chat_names_a_service_that_has_failed_and_its_log(shell: Any, write: Any, gateway: bool) -> None:
    write("bad.py", "raise RuntimeError('no key')\n")
    assert shell("register", "bad", "bad.py", "--restart", "never", "--auto-start").returncode == 1
    with ExitStack() as stack:
        if gateway:
            stack.enter_context(shell.background("proxy", "--port", "0")).until("gateway at")
            assert "agentmgr logs bad" in shell.fails("chat", "--once", "hi")
        said = shell.fails("chat", "bad", "--once", "hi")
    assert "bad has failed" in said
    assert "agentmgr logs bad" in said
