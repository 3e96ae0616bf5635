"""What a shell offers when somebody presses Tab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import pytest


@pytest.fixture
def registered(here: Any) -> Any:
    """Where two services and a rule are registered, and no manager runs."""
    for name in ("alpha", "beta"):
        here.ok("register", name, "my_agent.py")
    here.ok("routes", "add", "zh", "--service", "alpha")
    return here


def offered(here: Any, line: str, **environment: str) -> list[str]:
    """What is offered for the last word of the line, as bash asks for it."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = here(_AGENTMGR_COMPLETE="bash_complete", **words, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return [item.removeprefix("plain,") for item in done.stdout.split()]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("agentmgr unr", ["unregister"]),
        ("agentmgr stop ", ["alpha", "beta"]),
        ("agentmgr start alpha ", ["beta"]),
        ("agentmgr logs b", ["beta"]),
        ("agentmgr connections --service a", ["alpha"]),
        ("agentmgr routes remove ", ["zh"]),
        ("agentmgr tokens revoke ", []),
        ("agentmgr register gamma my_a", ["file,my_a"]),
        ("agentmgr list --status run", ["running"]),
    ],
)
def test_names_are_offered_where_names_are_asked_for(registered: Any, line: str, wanted: list[str]) -> None:
    assert offered(registered, line) == wanted


def test_names_are_those_of_the_database_that_the_line_names(registered: Any) -> None:
    assert offered(registered, "agentmgr --db-path other.db stop ") == []
    assert offered(registered, "agentmgr stop ", AGENTMGR_DB="agent_manager.db") == ["alpha", "beta"]


def test_whatever_is_wrong_the_line_stays_clean(registered: Any) -> None:
    registered.paths.database.write_bytes(b"not a database" * 1000)
    assert offered(registered, "agentmgr stop ") == []
    (registered.directory / "agentmgr.toml").write_text("nonsense")
    assert offered(registered, "agentmgr stop ") == []


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("zsh", {"COMP_WORDS": "agentmgr stop a", "COMP_CWORD": "2"}),
        ("fish", {"COMP_WORDS": "agentmgr stop ", "COMP_CWORD": "a"}),
    ],
)
def test_other_shells_are_answered_in_their_own_way(
    registered: Any, name: str, asked: dict[str, str]
) -> None:
    done = registered(_AGENTMGR_COMPLETE=f"{name}_complete", **asked)
    assert "alpha" in done.stdout
    assert "beta" not in done.stdout
    assert f"_AGENTMGR_COMPLETE={name}_complete" in registered.ok("completion", name)


@pytest.mark.skipif(shutil.which("bash") is None, reason="a platform without bash")
def test_bash_itself_completes(registered: Any) -> None:
    program = registered.directory / "agentmgr"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m agentmgr "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(agentmgr completion bash)"
        COMP_WORDS=(agentmgr stop a) COMP_CWORD=2
        _agentmgr_completion agentmgr
        echo "${COMPREPLY[@]}"
    """
    path = f"{registered.directory}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=registered.directory, env={**registered.environment, "PATH": path},
        capture_output=True, text=True, timeout=40,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("alpha\n", "")
