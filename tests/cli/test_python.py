"""`--python`: agents in another environment, and what they are told where it lacks something."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from agentmgr import bootstrap
from agentmgr.other_python import NEEDS, NEEDS_FOR_REDIS

AGENT = """
import marker

async def agent(message):
    return f"{marker.TEXT}: {message}"
"""


class Environment:
    """A virtual environment that has nothing, at first."""

    def __init__(self, directory: Path) -> None:
        venv.create(directory, symlinks=True)
        self.python = directory / "bin" / "python"
        [self.packages] = directory.glob("lib/python*/site-packages")

    def has_ours(self) -> None:
        """Gives it what is installed here, except agentmgr: its finder is not taken along."""
        (self.packages / "ours.pth").write_text("\n".join(site.getsitepackages()))


@pytest.fixture
def theirs(tmp_path: Path) -> Environment:
    made = Environment(tmp_path / "theirs")
    (made.packages / "marker.py").write_text("TEXT = 'theirs'")
    (made.packages / "agentmgr").mkdir()
    (made.packages / "agentmgr" / "__init__.py").write_text("raise SystemExit('an older agentmgr')")
    (tmp_path / "theirs_agent.py").write_text(AGENT)
    return made


def test_an_environment_says_what_to_install_and_serves_once_that_is_there(
    shell: Any, theirs: Environment
) -> None:
    shell.ok("register", "x", "theirs_agent.py", "--python", "theirs/bin/python")
    refused = shell.fails("start", "x")
    install = f"uv pip install --python {theirs.python} 'attrs>=24.2'"  # it has no pip
    assert f"{theirs.python} cannot run a hosted agent: it lacks attrs, cattrs," in refused
    assert install in refused
    [finding] = [finding for finding in _findings(shell) if "lacks attrs" in finding["found"]]
    assert install in finding["advice"]
    assert json.loads(shell.ok("status", "x", "--format", "json"))["status"] == "error"  # and is left alone
    theirs.has_ours()
    shell.ok("start", "x")
    assert shell.ok("chat", "x", "--once", "hi").strip() == "theirs: hi"
    assert _findings(shell) == []


def _findings(shell: Any) -> list[dict[str, Any]]:
    found = json.loads(shell("doctor", "--format", "json").stdout)
    return [f for f in found if f["what"] == "service x" and "was given up" not in f["found"]]


def test_serve_runs_it_too(shell: Any, theirs: Environment) -> None:
    words = ("serve", "theirs_agent.py", "--python", "theirs/bin/python", "--port", "0")
    with shell.background(*words) as running:
        assert "it lacks attrs" in running.until("cannot run")
    theirs.has_ours()
    with shell.background(*words) as running:
        url = running.until("is served at").split()[-1]
        assert shell.ok("chat", url, "--once", "hi").strip() == "theirs: hi"
        assert running.interrupt()[0] == 0
    assert "cannot execute 'no/python': No such file" in shell.fails(*words[:3], "no/python", *words[4:])


def test_an_old_package_and_what_is_no_python_are_named(here: Any, theirs: Environment) -> None:
    theirs.has_ours()
    (theirs.packages / "trio-0.29.0.dist-info").mkdir()
    done = subprocess.run(bootstrap.words("--check", str(theirs.python)), capture_output=True, text=True)
    assert done.returncode == 78
    assert "cannot run a hosted agent: its trio 0.29.0 is older than 0.30; this installs" in done.stderr
    assert done.stderr.endswith("'trio>=0.30'\n")
    with_redis = os.environ | {"AGENTMGR_SESSIONS_URL": "redis://localhost"}
    (theirs.packages / "coredis-5.0.dist-info").mkdir()
    done = subprocess.run(
        bootstrap.words("--check", str(theirs.python)), capture_output=True, text=True, env=with_redis
    )
    assert done.stderr.endswith("'trio>=0.30' 'coredis>=6'\n")  # in one go
    here.ok("register", "x", "theirs_agent.py", "--python", "/bin/true")
    assert [finding["found"] for finding in _findings(here)] == [
        "/bin/true does not work as a Python: exit code 0"
    ]


def test_what_a_host_needs_is_what_it_imports_in_the_versions_that_are_required() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    required = {(r := Requirement(text)).name: str(r.specifier) for text in project["dependencies"]}
    assert {name: f">={oldest}" for name, (_, oldest) in NEEDS.items()}.items() <= required.items()
    redis = {
        (r := Requirement(text)).name: str(r.specifier) for text in project["optional-dependencies"]["redis"]
    }
    assert {name: f">={oldest}" for name, (_, oldest) in NEEDS_FOR_REDIS.items()} == redis
    code = """
import sys
from agentmgr import codec
from agentmgr.agent import __main__, aio
from agentmgr.journal import sqlite
print(*{name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names)
"""
    imported = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    ours = {"agentmgr", "__main__"}
    brought_along = {"attr", "idna", "sniffio", "sortedcontainers", "typing_extensions"}
    modules = {module for module, _ in NEEDS.values()}
    assert modules <= imported
    assert imported & {"rich", "asyncclick", "quart", "hypercorn", "structlog", "re2", "dotenv"} == set()
    at_start = {name for name in imported if name.startswith("_")}  # of .pth files
    assert imported - modules - ours - brought_along - at_start == set()
