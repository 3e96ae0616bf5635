"""A directory that others may write to, where a user's commands find what another user has put there."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")

ANOTHER = 65534


def give_away(path: Any) -> None:
    os.chown(path, ANOTHER, ANOTHER)


@pytest.mark.parametrize(
    "words",
    [("list",), ("start", "x"), ("register", "mine", "my_agent.py", "--auto-start"), ("backup", "b"),
     ("doctor",), ("info",), ("daemon",), ("shutdown",), ("tokens", "list"), ("apply", "services.toml")],
)  # fmt: skip
def test_no_command_uses_another_users_database(here: Any, words: tuple[str, ...]) -> None:
    here.ok("register", "x", "my_agent.py")
    (here.directory / "services.toml").write_text("")
    give_away(here.paths.database)
    assert "belongs to another user" in here.fails(*words)
    assert f"--trust {here.paths.database}" in here.fails(*words)


def test_nor_a_socket_where_another_user_would_hear_the_secrets(here: Any) -> None:
    here.paths.directory.mkdir(mode=0o700)
    give_away(here.paths.directory)
    said = here.fails("register", "x", "my_agent.py", "--env", "KEY=secret")
    assert "agent_manager.db.d belongs to another user" in said


def test_what_is_accepted_is_used_also_by_the_manager_that_a_command_starts(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py")
    give_away(shell.paths.database)
    done = shell.process("start", "x", "--trust", "agent_manager.db")
    assert done.returncode == 0, done.stderr
    assert "running" in shell.process("list", AGENTMGR_TRUST=str(shell.directory)).stdout
    done = shell.process("shutdown", AGENTMGR_TRUST=str(shell.directory))
    assert done.returncode == 0, done.stderr


def test_own_files_in_a_directory_of_everybodys_are_used(here: Any) -> None:
    here.directory.chmod(0o1777)
    shutil.copy(here.directory / "my_agent.py", here.directory / "their_agent.py")
    give_away(here.directory / "their_agent.py")  # named by the user himself
    here.ok("register", "x", "their_agent.py")
    assert "x" in here.ok("list")


def test_secrets_are_not_written_to_another_users_file_nor_through_his_link(here: Any) -> None:
    here.ok("register", "x", "my_agent.py", "--env", "KEY=secret")
    planted, link, mine = (here.directory / name for name in ("planted.toml", "link.toml", "mine.toml"))
    planted.touch()
    give_away(planted)
    mine.write_text("mine")
    link.symlink_to(mine)
    os.chown(link, ANOTHER, ANOTHER, follow_symlinks=False)
    for path in (planted, link):
        assert f"{path.name} belongs to another user" in here.fails(
            "export", "--with-env", "--output", str(path)
        )
    assert (planted.read_text(), mine.read_text()) == ("", "mine")
    here.ok("export", "--with-env", "--output", str(mine))
    assert "secret" in mine.read_text()
