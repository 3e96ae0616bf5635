"""Commands in the wrong state or order, about things that are not there: each answer says what is."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

# Ends only when it is killed.
STUBBORN = """
import signal
def create_agent():
    signal.signal(signal.SIGTERM, lambda *_: None)  # not at its import: the host sets its own after that
    async def agent(message):
        return message
    return agent
"""


def test_nothing_is_started_by_a_manager_that_is_shutting_down(shell: Any, write: Any) -> None:
    write("stubborn.py", STUBBORN)
    shell.ok("register", "slow", "stubborn.py", "--stop-timeout", "60", "--auto-start")
    shell.ok("register", "echo", "my_agent.py")
    with shell.background("shutdown") as ending:
        while (slow := json.loads(shell.ok("status", "slow", "--format", "json")))["status"] == "running":
            pass
        for words in (
            ("start", "echo"), ("restart", "echo"), ("register", "new", "my_agent.py", "--auto-start")
        ):  # fmt: skip
            assert "this manager is shutting down; try again when it has ended" in shell.fails(*words)
        os.kill(slow["instances"][0]["pid"], signal.SIGKILL)
        ending.until("the manager has ended")
    after = {s["name"]: s["desired_status"] for s in json.loads(shell.ok("list", "--format", "json"))}
    assert after == {"slow": "running", "echo": "stopped"}, "what was refused is not done later either"


def test_no_events_are_said_to_be_none(here: Any) -> None:
    done = here("events")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no events\n")


def test_a_tail_of_nothing_does_not_mean_that_there_are_no_events(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    shell.ok("shutdown")
    assert "no event" not in shell("events", "--tail", "0").stderr


def test_logs_of_an_instance_that_there_is_not_are_refused_without_a_manager_too(here: Any) -> None:
    here.ok("register", "echo", "my_agent.py")
    assert "instance must be from 0 to 0" in here.fails("logs", "echo", "--instance", "5")


def test_waiting_for_what_is_not_registered_is_said_to_be_that(shell: Any) -> None:
    said = shell.fails("register", "x", "my_agent.py", "--after", "nope", "--auto-start")
    assert "waits for nope, which is no registered service" in said
    assert "start nope" not in said


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (("--service", "ech", "--service", "echo"), "no service is called 'ech' yet"),
        (("--tags", "nobodys"), "no service has the tag 'nobodys' yet"),
        (("--service", "echo"), ""),
        (("--tags", "known,nobodys"), ""),
    ],
)
def test_a_rule_towards_what_is_not_there_says_so(here: Any, words: tuple[str, ...], missing: str) -> None:
    here.ok("register", "echo", "my_agent.py", "--tags", "known")
    done = here("routes", "add", "r", *words)
    assert (done.returncode, done.stdout) == (0, "added r\n")
    assert done.stderr.strip() == missing
    assert here("routes", "change", "r", *words).stderr.strip() == missing


def test_a_path_that_no_request_has_is_refused(here: Any) -> None:
    assert "must begin with '/'" in here.fails("routes", "test", "--path", "vip", code=2)


def test_chat_without_a_manager_says_how_the_service_is_started(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmgr.cli.commands.chat.DEFAULT_GATEWAY", "ws://localhost:1")
    here.ok("register", "echo", "my_agent.py")
    assert "`agentmgr start echo` starts one, and the service" in here.fails("chat", "echo", "--once", "hi")
    assert "`agentmgr run FILE`" in here.fails("chat", "nope", "--once", "hi")
