"""What is different where a person looks on: colours, and word of what is being waited for."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.conditions import heard

WAITS = """
import pathlib, time
while not pathlib.Path("go").exists():
    time.sleep(0.01)
from my_agent import create_agent
"""


def on_terminal(shell: Any, *words: str, until: str = "", **environment: str) -> str:
    """What the command shows on a terminal of its own; it must succeed. `until`: an agent that `WAITS` starts
    when that is shown.
    """
    ours, theirs = pty.openpty()
    process = shell.popen(
        [sys.executable, "-m", "agentmgr", *words],
        cwd=shell.directory,
        env={**shell.environment, "TERM": "xterm", "COLUMNS": "200", **environment},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with process, os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(65536):
                shown += piece
                if until and until in shown.decode(errors="replace"):
                    (shell.directory / "go").touch()
        except OSError:  # EIO: the last one who had it open has closed it
            pass
    assert process.returncode == 0, shown
    return shown.decode()


@pytest.mark.parametrize("words", [["list"], ["status", "one"]])
def test_colours_are_for_terminals_whose_user_does_not_object(shell: Any, words: list[str]) -> None:
    shell.ok("register", "one", "my_agent.py")
    shell.ok("register", "two", "my_agent.py")
    with shell.background("daemon") as daemon:
        daemon.until("managing")
        shell.ok("start", "one")
        assert "\x1b[32mrunning" in on_terminal(shell, *words)
        assert "\x1b[3" not in on_terminal(shell, *words, NO_COLOR="1")
        assert "\x1b" not in shell.ok(*words)


def test_what_is_waited_for_is_said_on_a_terminal(shell: Any, write: Any) -> None:
    write("waits.py", WAITS)
    shell.ok("register", "one", "waits.py")
    with shell.background("daemon", "--proxy-port", "0") as daemon:
        gateway = daemon.until("gateway at").split()[-1]
        started = on_terminal(shell, "start", "one", until="one, instance 0: starting")
        assert started.index("one, instance 0: starting") < started.index("one is running")
        with connect(gateway) as client:
            client.send("hi")
            assert heard(client) == "echo: hi"
            stopped = on_terminal(shell, "stop", "one")
        assert "one, instance 0: draining" in stopped
        # How many are open is asked after the event: on a busy machine the one may have ended by then.
        assert "(1 session open)" in stopped or "a session has ended" in stopped
        assert "one: a session has ended" in stopped
        assert stopped.splitlines()[-1] == "one is stopped"
        assert "starting" not in shell("start", "one").stderr, "a pipe gets the answer only"
        assert "instance 0: stopping" in on_terminal(shell, "shutdown")


def test_a_table_has_fewer_columns_on_a_narrow_terminal_and_no_broken_words(shell: Any) -> None:
    shell.ok("register", "my-echo-agent", "my_agent.py", "--tags", "echo,demo")
    for columns in ("200", "80", "40"):
        shown = on_terminal(shell, "list", COLUMNS=columns)
        assert {"stopped", "unknown", "0/1"} <= set(shown.split()), shown
        assert ("demo, echo" in shown) == (columns == "200")
        assert ("my-echo-agent" in shown) == (columns != "40"), "it is folded when no more columns can go"


def test_a_service_that_was_just_registered_is_called_by_its_name(shell: Any, write: Any) -> None:
    write("waits.py", WAITS)
    starting = "one, instance 0: starting"
    assert "a service" not in on_terminal(
        shell, "register", "one", "waits.py", "--auto-start", until=starting
    )
