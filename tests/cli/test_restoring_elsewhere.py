"""Copies of a database in another place, on a machine where the original's instances run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


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


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    for directory in (Path(tempfile.gettempdir()), Path("/dev/shm")):
        if directory.is_dir() and directory.stat().st_dev != tmp_path.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=directory) as place:
                yield Path(place)
            return
    pytest.skip("there is no second file system here")


def test_a_database_that_is_moved_to_another_disk_takes_its_instances_over_on_demand(
    shell: Any, other_disk: Path
) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = pid_of(shell)
    shell.ok("shutdown", "--leave-running")
    for path in (shell.paths.database, shell.paths.directory):
        shutil.move(path, other_disk / path.name)
    there = ("--db-path", str(other_disk / "agent_manager.db"))
    assert "restore --take-over" in shell("doctor", *there).stdout
    shell.ok("backup", "copy.db", *there)
    shell.ok("restore", "--take-over", "copy.db", *there)
    shell.ok("start", "x", *there)
    assert pid_of(shell, *there) == pid
    shell.ok("shutdown", *there)


def test_a_database_that_is_moved_within_its_disk_is_the_same(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = pid_of(shell)
    shell.ok("shutdown", "--leave-running")
    shell.paths.database.rename(shell.directory / "moved.db")
    shell.paths.directory.rename(shell.directory / "moved.db.d")
    there = ("--db-path", "moved.db")
    shell.ok("start", "x", *there)
    assert pid_of(shell, *there) == pid
    shell.ok("shutdown", *there)


def test_another_name_of_the_database_is_no_way_around_its_owner(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A symbolic link is the same database; a hard link has no directory, and so no instances."""
    monkeypatch.setattr("agentmgr.cli.managers._PATIENCE_S", 1)  # with a manager that does not answer there
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = pid_of(shell)
    (shell.directory / "link.db").symlink_to("agent_manager.db")
    os.link(shell.paths.database, shell.directory / "hard.db")
    assert pid_of(shell, "--db-path", "link.db") == pid
    assert "manages" in shell.fails("register", "y", "my_agent.py", "--db-path", "hard.db")
    shell.ok("shutdown", "--leave-running")
    assert "belongs to" in shell("list", "--db-path", "hard.db").stderr
    shell.ok("start", "x")
    assert pid_of(shell) == pid


def test_links_are_no_copy(shell: Any) -> None:
    """As of `cp -al`: the control socket in it is another name of the original's.

    The test's name is short, as its directory is named after it: of a socket that was bound at a long path
    nobody knows where that was.
    """
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    pid = pid_of(shell)
    copy = shell.directory / "copy"
    subprocess.run(["cp", "-al", "--", shell.paths.database, shell.paths.directory, _made(copy)], check=True)
    there = ("--db-path", str(copy / shell.paths.database.name))
    for words in (["list"], ["stop", "x"], ["shutdown"], ["register", "y", "my_agent.py"]):
        assert "consists of links" in shell.fails(*words, *there), words
    assert pid_of(shell) == pid
    shell.ok("stop", "x")


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory
