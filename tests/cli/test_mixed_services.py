"""Services of all kinds from one file: applied, listed, broken, mended, handed to a new manager, stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HTTP = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
FILE = f"""
[services.agent]
agent_factory_path = "my_agent.py"

[services.worker]
command = ["sh", "-c", "while :; do echo tick; sleep 1; done"]

[services.web]
command = {json.dumps(HTTP)}
ready = "http"

[services.slow]
command = ["sh", "-c", {json.dumps("sleep 2; exec " + " ".join(HTTP))}]
ready = "tcp"

[services.loud]
command = ["sh", "-c", "yes | head -c 5000000; exec sleep 1000"]
log_max_bytes = 65536
log_files = 2

[services.nightly]
command = ["true"]
schedule = "0 3 * * *"

[services.migrate]
command = ["sh", "-c", "echo run >> runs"]
restart = "never"

[services.app]
command = ["sleep", "1000"]
after = ["migrate:completed"]
"""


def statuses(shell: Any) -> dict[str, str]:
    return {each["name"]: each["status"] for each in json.loads(shell.ok("list", "--format", "json"))}


def test_a_first_week(shell: Any, write: Any) -> None:
    write("services.toml", FILE)
    shell.ok("apply", "services.toml")
    kept = dict.fromkeys(("agent", "worker", "web", "slow", "loud", "app"), "running")
    as_declared = kept | {"nightly": "scheduled", "migrate": "completed"}
    assert statuses(shell) == as_declared
    assert shell.ok("apply", "services.toml") == "nothing to do\n"
    agent = Path(shell.directory, "my_agent.py")
    good = agent.read_text()
    agent.write_text("def create_agent(:\n")
    assert "SyntaxError" in shell.fails("restart", "agent")
    assert statuses(shell) == as_declared
    agent.write_text(good)
    shell.ok("restart", "agent")
    shell.ok("shutdown", "--leave-running")
    assert statuses(shell)["migrate"] == "completed"
    shell.ok("restart", "worker")
    assert statuses(shell) == as_declared
    assert Path(shell.directory, "runs").read_text() == "run\n"
    assert "8 of 8 services stopped" in shell.ok("stop", "--all")
    assert statuses(shell) == dict.fromkeys(as_declared, "stopped")
