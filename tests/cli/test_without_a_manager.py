"""Commands when no manager runs: read and register on the database, and start a daemon for the rest."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest


def test_reading_creates_nothing(here: Any) -> None:
    assert here.ok("list") == ""
    assert json.loads(here.ok("list", "--format", "json")) == []
    assert json.loads(here.ok("stats", "--format", "json"))["services"]["total"] == 0
    assert json.loads(here.ok("routes", "list", "--format", "json")) == []
    assert json.loads(here.ok("connections", "--format", "json")) == []
    assert "not running" in here.ok("info")
    here.ok("shutdown")
    assert "no service" in here.fails("status", "nobody")
    assert "no service" in here.fails("logs", "nobody")
    assert not here.paths.database.exists()
    assert not here.paths.directory.exists()


def test_registering_and_changing_needs_no_manager(here: Any) -> None:
    here.ok("register", "x", "my_agent.py")
    here.ok("scale", "x", "2")
    assert "stopped" in here.ok("stop", "x")
    here.ok("routes", "add", "zh", "--when", "query.lang", "equals", "zh", "--service", "x")
    (service,) = json.loads(here.ok("list", "--format", "json"))
    assert (service["name"], service["config"]["instances"]) == ("x", 2)
    assert "x has 2..5 instances" in here.ok("scale", "x", "2..5")
    here.ok("change", "x", "--sessions-per-instance", "9")
    assert "0/2 of 2..5" in here.ok("list")
    assert "2 of 2..5, one for each 9 connections" in here.ok("status", "x")
    refused = here.fails("register", "y", "--instances", "1..4", "--", "node", "server.js", "{port}")
    assert "add sessions_per_instance or max_sessions" in refused
    assert service["agent_factory_path"] == str(here.directory / "my_agent.py")
    assert "query.lang equals zh" in here.ok("routes", "list")
    assert "unregistered" in here.ok("unregister", "x")
    assert here.manager_pid() is None


def test_what_needs_a_manager_says_so(here: Any) -> None:
    assert "no manager is running" in here.fails("disconnect", "conn_1")
    assert "no manager is running" in here.fails("events", "--follow")
    assert "`agentmgr daemon --cluster joined` runs one" in here.fails("nodes")


def test_rules_can_be_tried_before_anything_runs(here: Any) -> None:
    here.ok("register", "english", "my_agent.py", "--tags", "en")
    here.ok("register", "chinese", "my_agent.py", "--tags", "zh", "--instances", "2")
    here.ok("routes", "add", "zh", "--when", "query.lang", "equals", "zh", "--tags", "zh", "--priority", "1")
    here.ok("routes", "add", "others", "--tags", "en", "--priority", "10")
    decision = json.loads(here.ok("routes", "test", "--path", "/?lang=zh", "--format", "json"))
    assert (decision["rule"], decision["service"]) == ("zh", "chinese")
    assert decision["candidates"] == ["chinese/0", "chinese/1"]
    assert "english/0" in here.ok("routes", "test", "--path", "/?lang=en")
    assert "no service named" in here.ok("routes", "test", "--path", "/services/nobody")
    assert here.manager_pid() is None


def test_a_daemon_that_cannot_be_spawned_leaves_no_pipe_behind(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.ok("register", "x", "my_agent.py")
    monkeypatch.setattr(sys, "executable", str(here.directory / "no-such-python"))
    before = os.listdir("/proc/self/fd")
    assert "no-such-python" in here.fails("start", "x")
    assert os.listdir("/proc/self/fd") == before


def test_commands_at_once_all_register_and_start_one_daemon(shell: Any) -> None:
    def register(number: int) -> subprocess.CompletedProcess[str]:
        auto = ["--auto-start"] if number % 2 else []
        return shell.process("register", f"s{number}", "my_agent.py", *auto)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(6) as threads:
        done = list(threads.map(register, range(6)))
    assert [d.returncode for d in done] == [0] * 6, [d.stderr for d in done]
    started = [line for d in done for line in d.stderr.splitlines() if "started a manager" in line]
    assert len(started) == 1
    services = json.loads(shell.ok("list", "--format", "json"))
    assert [service["name"] for service in services] == [f"s{n}" for n in range(6)]
    ports = [i["port"] for service in services for i in service["instances"]]
    assert len(ports) == len(set(ports)) == 3


def test_instances_that_outlive_their_manager_are_shown_adopted_and_stopped(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    (service,) = json.loads(shell.ok("list", "--format", "json"))
    pid = service["instances"][0]["pid"]
    manager = shell.kill_manager()
    assert shell.lives(pid)

    done = shell("list")
    assert "1 instance runs unsupervised" in done.stderr
    assert "1/1" in done.stdout
    done = shell("stop", "x")
    assert done.returncode == 0, done.stderr
    assert "started a manager" in done.stderr
    assert not shell.lives(pid)
    assert shell.manager_pid() not in (None, manager)


def test_a_daemon_that_cannot_start_says_why(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = here.directory / "python"
    broken.write_text("#!/bin/sh\necho some noise\necho the reason >&2\nexit 1\n")
    broken.chmod(0o755)
    here.ok("register", "x", "my_agent.py")
    monkeypatch.setattr(sys, "executable", str(broken))
    (line,) = here.fails("start", "x").splitlines()
    assert "did not start: the reason" in line
    assert str(here.paths.daemon_log) in line


def test_a_daemon_that_cannot_have_its_files_says_which(here: Any) -> None:
    here.ok("register", "x", "my_agent.py")
    here.paths.lock.unlink()
    here.paths.lock.mkdir()
    assert f"did not start: {here.paths.lock} cannot be opened" in here.fails("start", "x")


def test_a_damaged_database_is_said_before_anything_is_started(here: Any) -> None:
    here.paths.database.write_bytes(b"not a database" * 1000)
    for words in (["list"], ["register", "x", "my_agent.py"], ["start", "x"]):
        assert "damaged" in here.fails(*words)
    assert not here.paths.directory.exists()


def test_the_database_may_be_named_before_or_after_or_by_the_environment(here: Any) -> None:
    here.ok("--db-path", "a.db", "register", "in-a", "my_agent.py")
    here.ok("register", "in-b", "my_agent.py", "--db-path", "b.db")
    here.ok("register", "in-c", "my_agent.py", AGENTMGR_DB="c.db")
    for letter in "abc":
        assert f"in-{letter}" in here.ok("list", "--db-path", f"{letter}.db")
        assert f"in-{letter}" in here.ok("--db-path", f"{letter}.db", "list")
    assert "in-a" in here.ok("list", "--db-path", "a.db", AGENTMGR_DB="c.db"), "a flag wins"
    here.ok("routes", "--db-path", "a.db", "list")
    assert here.ok("list") == ""


@pytest.mark.usefixtures("anew")
def test_a_daemon_started_in_the_background_is_nobodys_child(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = shell.manager_pid()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[3]) == pid, "a session of its own: closing the terminal does not reach it"
    targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)}
    assert targets == {"/dev/null", str(shell.paths.daemon_log)}
    assert shell.paths.daemon_log.stat().st_mode & 0o777 == 0o600
    assert sys.executable in Path(f"/proc/{pid}/cmdline").read_text()


def test_a_managers_own_log_is_json_and_names_each_request(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    shell.ok("stop", "x")
    lines = [json.loads(line) for line in shell.paths.daemon_log.read_text().splitlines()]
    stopped = [line for line in lines if line["event"].endswith("/x/stop: 200")]
    assert [line["request_id"][:4] for line in stopped] == ["req_"]


def test_the_log_level_may_be_given(shell: Any) -> None:
    with shell.background("api", "--port", "0", "--log-level", "debug", "--log-format", "json") as api:
        api.until("API at")
        shell.ok("list")
        api.until("GET /api/v1/services")
        api.interrupt()


def test_instances_are_shown_in_order_whichever_was_started_last(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--instances", "2", "--restart-delay", "0", "--auto-start")
    first = json.loads(shell.ok("status", "x", "--format", "json"))["instances"][0]
    with shell.background("events", "--follow") as events:
        events.until("instance.running", "slot=0")
        os.kill(first["pid"], signal.SIGKILL)
        events.until("instance.running", "slot=0")
    shell.ok("shutdown", "--leave-running")
    left = json.loads(shell.ok("status", "x", "--format", "json"))["instances"]
    assert [instance["slot"] for instance in left] == [0, 1]


def test_how_a_service_last_ended_is_shown_with_and_without_a_manager(here: Any) -> None:
    here.ok("register", "x", "my_agent.py", "--restart", "never")
    here.ok("start", "x")
    (instance,) = json.loads(here.ok("status", "x", "--format", "json"))["instances"]
    assert "last end" not in here.ok("status", "x")
    os.kill(instance["pid"], signal.SIGKILL)
    while "last end" not in (shown := here.ok("status", "x")):
        pass
    assert re.search(r"last end +\d+s ago: ended unasked after .*SIGKILL", shown)
    here.ok("shutdown")
    assert "SIGKILL" in here.ok("status", "x").partition("last end")[2]


def test_after_a_machines_death_it_is_said_that_services_should_run(here: Any) -> None:
    here.ok("register", "one", "my_agent.py", "--auto-start")
    here.ok("register", "two", "my_agent.py", "--auto-start")
    here.ok("register", "idle", "my_agent.py")
    here.ok("shutdown")  # as after a death: what should run is in the database
    done = here("list")
    assert done.stderr == "2 services should run and no manager does: `agentmgr daemon`\n"
    (found,) = [line for line in here.ok("doctor").splitlines() if line.startswith("manager ")]
    assert "warning" in found
    assert "2 services should run and no manager does" in found
