"""Backup, restore, doctor, watching: what whoever operates a machine needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def names(shell: Any, *more: str) -> list[str]:
    return [service["name"] for service in json.loads(shell.ok("list", "--format", "json", *more))]


def test_a_backup_is_made_with_and_without_a_manager_and_put_back_without_one(shell: Any) -> None:
    shell.ok("register", "one", "my_agent.py", "--auto-start")
    shell.ok("backup", "copy.db")
    assert names(shell, "--db-path", "copy.db") == ["one"]
    assert "is there already" in shell.fails("backup", "copy.db")
    assert "agentmgr shutdown" in shell.fails("restore", "copy.db"), "a manager runs"
    shell.ok("shutdown")
    shell.ok("backup", "second.db")
    shell.ok("unregister", "one")
    said = shell.ok("restore", "copy.db")
    assert names(shell) == ["one"]
    assert names(shell, "--db-path", said.split()[-1]) == [], "what was replaced is kept"


def test_a_database_taken_away_from_its_manager_is_said_and_can_be_brought_back(shell: Any) -> None:
    shell.ok("register", "one", "my_agent.py", "--auto-start")
    assert "degraded" not in shell.ok("status")
    shell.paths.database.unlink()
    for words in (["status"], ["info"]):
        assert "was deleted" in shell.ok(*words)
    findings = json.loads(shell("doctor", "--format", "json").stdout)
    (manager,) = [finding for finding in findings if finding["what"] == "manager"]
    assert "was deleted" in manager["found"]
    assert "manages" in shell.fails("restore", "copy.db"), "the manager lives"
    # What it advises.
    (shell.directory / "saved.toml").write_text(shell.ok("export"))
    shell.ok("shutdown")
    assert names(shell) == []
    shell.ok("apply", "saved.toml")
    assert "running" in shell.ok("list")


def test_a_manager_whose_socket_was_deleted_is_waited_for(shell: Any) -> None:
    shell.ok("register", "one", "my_agent.py", "--auto-start")
    for command, said in (("list", "running"), ("shutdown", "the manager has ended")):
        shell.paths.control_socket.unlink()
        done = shell(command)
        assert said in done.stdout
        assert "no manager" not in done.stderr


def test_nothing_is_put_back_under_a_manager_whose_lock_file_was_deleted(shell: Any) -> None:
    shell.ok("register", "one", "my_agent.py", "--auto-start")
    shell.ok("backup", "copy.db")
    shell.paths.lock.rename(shell.directory / "lock")
    assert "manages" in shell.fails("restore", "copy.db")
    shell.paths.lock.unlink()
    (shell.directory / "lock").rename(shell.paths.lock)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_connection_id_that_a_client_sees_is_the_one_to_disconnect(shell: Any, workers: str) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    shell.ok("shutdown")
    options = ("--proxy-port", "0", "--workers", workers, "--trusted-proxy", "127.0.0.1")
    with shell.background("daemon", *options) as daemon:
        url = daemon.until("gateway at ws").split()[-1]
        shell.ok("start", "echo")
        with connect(url, additional_headers={"X-Request-Id": "of-a-proxy"}) as client:
            client.send('{"event": "user.message", "content": "hello"}')
            connected = json.loads(client.recv(timeout=30))
            connection_id = connected["content"]["connection_id"]
            assert connected["event"] == "system.connected"
            assert json.loads(client.recv(timeout=30))["connection_id"] == connection_id
            shell.ok("disconnect", connection_id, "--code", "4321")
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    client.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4321


def test_nothing_bad_is_put_back(here: Any, write: Any) -> None:
    here.ok("register", "one", "my_agent.py")
    for file, said in (("none.db", "none.db"), (write("bad.db", "x" * 5000), "bad.db")):
        assert said in here.fails("restore", file)
    assert names(here) == ["one"]
    assert "no database" in here.fails("backup", "copy.db", "--db-path", "never.db")


def test_the_doctor_finds_nothing_wrong_where_nothing_is(here: Any) -> None:
    here.ok("register", "one", "my_agent.py")
    findings = json.loads(here.ok("doctor", "--format", "json"))
    assert {finding["result"] for finding in findings} <= {"ok", "warning"}
    assert {"versions", "database", "manager", "disk", "open files"} <= {f["what"] for f in findings}
    assert "what to do" in here.ok("doctor").lower()


def test_the_doctor_says_what_is_wrong_and_what_to_do(here: Any) -> None:
    here.ok("register", "one", "my_agent.py")
    here.ok("register", "two", "--", "/nowhere/program")
    (here.directory / "my_agent.py").unlink()
    here.paths.directory.chmod(0o755)
    done = here("doctor", "--format", "json")
    assert done.returncode == 1
    errors = {f["what"]: f for f in json.loads(done.stdout) if f["result"] == "error"}
    assert set(errors) == {"service one", "service two", "files"}
    assert "my_agent.py is gone" in errors["service one"]["found"]
    assert "chmod 700" in errors["files"]["advice"]
    assert all(finding["advice"] for finding in errors.values())


@pytest.mark.parametrize("closed", ["agent_manager.db.d", ".", "agents"])
def test_the_doctor_says_what_the_system_does_not_let_it_look_at(here: Any, closed: str) -> None:
    agents = here.directory / "agents"
    agents.mkdir()
    (agents / "one.py").write_text((here.directory / "my_agent.py").read_text())
    here.ok("register", "one", "agents/one.py")
    (here.directory / closed).chmod(0)
    # As root: without the right to look everywhere, which root has.
    limits = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    try:
        done = subprocess.run(
            [*limits, sys.executable, "-m", "agentmgr", "doctor", "--format", "json"],
            cwd="/",
            env={**here.environment, "AGENTMGR_DB": str(here.paths.database)},
            capture_output=True,
            text=True,
        )
    finally:
        (here.directory / closed).chmod(0o700)
    assert done.returncode == 1, done.stderr
    errors = [f for f in json.loads(done.stdout) if f["result"] == "error"]
    assert any("Permission denied" in error["found"] for error in errors)
    assert all(error["advice"] for error in errors)


def test_the_doctor_says_which_services_have_failed_and_finds_programs_by_their_own_path(shell: Any) -> None:
    (shell.directory / "bin").mkdir()
    program = shell.directory / "bin" / "own-program"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    path = f"PATH={program.parent}:{os.environ['PATH']}"
    shell.ok("register", "well", "--auto-start", "--env", path, "--", "own-program")
    (shell.directory / "locked").write_text("")
    shell.ok("register", "locked", "--", "./locked")
    shell.ok("register", "sick", "--max-restart-count", "0", "--", "sh", "-c", "echo no table; exit 3")
    shell.fails("start", "sick")
    shell.ok("register", "later", "--after", "sick", "--", "sleep", "1000")
    shell.fails("start", "later")
    done = shell("doctor", "--format", "json")
    assert done.returncode == 1
    found = {f["what"]: f for f in json.loads(done.stdout) if f["what"].startswith("service ")}
    assert found.keys() == {"service sick", "service locked", "service later"}
    assert found["service later"]["found"].startswith("has not started yet: waits for service 'sick'")
    assert "exit code 3" in found["service sick"]["found"]
    assert "chmod +x" in found["service locked"]["advice"]


@pytest.mark.parametrize("most", [40, 64, 128, 200])
def test_the_doctor_counts_no_sessions_below_none(here: Any, most: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {most}; exec "$0" -m agentmgr doctor', sys.executable],
        cwd=here.directory,
        env=here.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("open files")]
    assert ("about 36 sessions" if most == 200 else "too few for sessions") in line


def test_the_doctor_shows_a_mistake_in_the_settings_as_a_finding(here: Any, write: Any) -> None:
    write("agentmgr.toml", "api_port = 'x'")
    done = here("doctor", "--format", "json")
    assert done.returncode == 1
    (error,) = [f for f in json.loads(done.stdout) if f["result"] == "error"]
    assert (error["what"], "api_port" in error["found"]) == ("settings", True)


def test_the_doctor_knows_a_damaged_database(here: Any) -> None:
    here.paths.database.write_bytes(b"x" * 5000)
    done = here("doctor", "--format", "json")
    assert done.returncode == 1
    (error,) = [f for f in json.loads(done.stdout) if f["result"] == "error"]
    assert error["what"] == "database"


def test_a_watched_list_is_shown_again_when_something_changes(shell: Any) -> None:
    shell.ok("register", "one", "my_agent.py", "--auto-start")
    with shell.background("list", "--watch") as watching:
        watching.until("one", "running")
        shell.ok("stop", "one")
        watching.until("one", "stopped")
    with shell.background("status", "one", "--watch") as watching:
        watching.until("status", "stopped")
        shell.ok("shutdown")
        watching.until("status", "stopped")
        watching.interrupt()


def test_status_tells_what_it_uses_and_what_is_not_enforced(shell: Any) -> None:
    above_all = str(int(Path("/proc/sys/fs/nr_open").read_text()) + 1)
    shell.ok("register", "one", "my_agent.py", "--max-open-files", above_all, "--auto-start")
    give_up_at = time.monotonic() + 60
    while "memory" not in (said := shell.ok("status", "one").lower()):
        assert time.monotonic() < give_up_at, said
    assert "mib" in said
    assert "open files" in said
    assert "not enforced" in said
    assert "max_open_files" in said
    used = json.loads(shell.ok("stats", "one", "--format", "json"))["usage"]
    assert used["memory_bytes"] > 2**20
    assert "usage memory" in shell.ok("stats", "one")


def test_a_copy_of_the_database_says_whose_the_processes_are(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = json.loads(shell.ok("list", "--format", "json"))[0]["instances"][0]["pid"]
    shell.ok("backup", "copy.db")
    copy = ("--db-path", "copy.db")
    whose = f"process {pid} "
    for words in (("list",), ("doctor",)):
        done = shell(*words, *copy)
        assert whose in done.stdout + done.stderr
        assert f"belongs to {shell.paths.database}" in done.stdout + done.stderr
    assert "unsupervised" not in shell("list", *copy).stderr
    shell.ok("stop", "x", *copy)
    shell.ok("register", "y", "my_agent.py", "--auto-start", *copy)  # with a manager of its own
    assert whose in shell("doctor", *copy).stdout
    shell.ok("shutdown", *copy)
    (service,) = json.loads(shell.ok("list", "--format", "json"))
    assert (service["status"], service["instances"][0]["pid"]) == ("running", pid)


def test_a_job_that_has_completed_is_shown_so_with_and_without_a_manager(shell: Any) -> None:
    shell.ok("register", "job", "--restart", "never", "--auto-start", "--", "/bin/sh", "-c", "exit 0")
    for _ in range(2):
        assert "completed" in shell.ok("list")
        shown = shell.ok("status", "job")
        assert "completed" in shown
        assert "wanted" not in shown
        shell("shutdown")
    assert "has completed" in shell.ok("start", "job"), "it runs again"


def test_a_schedule_is_shown_with_its_runs_and_may_be_run_at_once(shell: Any) -> None:
    words = ("--schedule", "0 3 * * *", "--timezone", "Europe/Berlin", "--", "/bin/sh", "-c", "exit 0")
    shell.ok("register", "nightly", "--auto-start", *words)
    shown = shell.ok("status", "nightly")
    assert "scheduled" in shown
    assert "0 3 * * * Europe/Berlin" in shown
    assert "next run" in shown
    assert "last run" not in shown
    assert "nightly runs" in shell.ok("run-now", "nightly")
    deadline = time.monotonic() + 60
    while "completed" not in (shown := shell.ok("list")):
        assert time.monotonic() < deadline, shown
    assert "NEXT RUN" in shown
    exported = shell.ok("export")
    assert 'schedule = "0 3 * * *"' in exported
    (shell.directory / "saved.toml").write_text(exported)
    shell.ok("shutdown")
    assert "scheduled" in shell.ok("list"), "also where no manager runs"
    assert "nothing to do" not in shell.ok("apply", "saved.toml"), "it starts a manager"
    assert "nothing to do" in shell.ok("apply", "saved.toml")
    assert "begins with `agentmgr start later`" in shell.ok("register", "later", *words)
