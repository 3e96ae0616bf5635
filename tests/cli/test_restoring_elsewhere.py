"""Copies of a database in another place, on a machine where the original's instances run."""

from __future__ import annotations

import json
import shutil
from typing import Any


def pid_of(shell: Any, *more: str) -> int:
    (service,) = json.loads(shell.ok("list", "--format", "json", *more))
    return int(service["instances"][0]["pid"])


def test_a_restored_copy_says_whose_the_instances_are(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = pid_of(shell)
    shell.ok("backup", "copy.db")
    drill = ("--db-path", "drill.db")
    said = shell.fails("restore", "copy.db", *drill)
    assert f"process {pid} " in said
    assert "--as-new" in said
    assert "--take-over" in said
    assert "is still there" in shell.fails("restore", "copy.db", "--take-over", *drill)
    assert not (shell.directory / "drill.db").exists()
    shell.ok("restore", "copy.db", "--as-new", *drill)
    shell.ok("start", "x", *drill)
    assert pid_of(shell, *drill) != pid
    shell.ok("shutdown", *drill)
    assert pid_of(shell) == pid


def test_instances_of_a_database_that_is_gone_are_taken_over(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = pid_of(shell)
    shell.ok("backup", "copy.db")
    shell.ok("shutdown", "--leave-running")
    shutil.rmtree(shell.paths.directory)
    shell.paths.database.unlink()
    there = ("--db-path", "there.db")
    shell.ok("restore", "copy.db", "--take-over", *there)
    for _ in range(2):  # by the first manager, and by the one after it
        shell.ok("start", "x", *there)
        assert pid_of(shell, *there) == pid
        shell.ok("shutdown", "--leave-running", *there)


def test_a_backup_goes_back_into_its_own_place_without_questions(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = pid_of(shell)
    shell.ok("backup", "copy.db")
    shell.ok("shutdown", "--leave-running")
    shell.ok("tokens", "create", "ci", "--scope", "admin")
    assert "API asks for a token" in shell.ok("restore", "copy.db"), "the copy is from before the tokens"
    assert "asks for a token" in shell("tokens", "list").stderr
    shell.ok("start", "x")
    assert pid_of(shell) == pid
