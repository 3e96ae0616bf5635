"""Services that start on demand, by the command line."""

from __future__ import annotations

import json
from typing import Any


def test_one_that_is_asleep_is_shown_steered_and_woken(shell: Any, write: Any) -> None:
    said = shell.ok("register", "echo", "my_agent.py", "--start", "on-demand", "--auto-start")
    assert "it is asleep until a client comes" in said
    write(
        "more.toml",
        f"[services.more]\nagent_factory_path = '{shell.directory / 'my_agent.py'}'\nstart = 'on-demand'\n",
    )
    assert "start service more" in shell.ok("apply", "more.toml")
    assert shell.ok("apply", "more.toml") == "nothing to do\n"
    assert 'start = "on-demand"' in shell.ok("export")
    for act in ("start", "restart"):
        assert "is asleep until a client comes" in shell.ok(act, "echo")
    status = shell.ok("status", "echo")
    assert "on demand; falls asleep after 300 s without use" in status
    assert "wanted" not in status
    services = json.loads(shell.ok("list", "--format", "json"))
    assert [(s["status"], s["instances"]) for s in services] == [("asleep", [])] * 2
    assert "0 running" in shell.ok("status")
    # No gateway is open: the command has it started, and talks to it.
    assert "echo: hello" in shell.ok("chat", "echo", "--once", "hello")
    assert "running" in shell.ok("list")
    shell.ok("change", "echo", "--idle-stop", "0.2")
    with shell.background("events", "--follow", "--format", "json") as events:
        found = json.loads(events.until('"service.asleep"'))
    assert found["detail"]["reason"] == "nothing has used it for 0.2 s"
    (session,) = json.loads(shell.ok("sessions", "echo", "--format", "json"))
    shell.ok("sessions", "say", session["session_id"], "again")
    shell.ok("change", "more", "--start", "always")
    assert json.loads(shell.ok("status", "more", "--format", "json"))["status"] in ("starting", "running")
    assert shell.ok("stop", "echo").endswith("is stopped\n")
    assert "is stopped" in shell.fails("chat", "echo", "--once", "hello")
    shell.ok("shutdown")
    assert "stopped" in shell.ok("status", "echo")
