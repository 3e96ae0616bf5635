"""The unit that is printed, and what the manager tells systemd."""

from __future__ import annotations

import configparser
import os
import shlex
import socket
import sys
from pathlib import Path
from pwd import getpwnam
from typing import Any


def test_the_unit_runs_this_python_on_this_database(here: Any) -> None:
    unit = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(here.ok("unit", "--proxy-port", "9090"))
    service = unit["Service"]
    assert shlex.split(service["ExecStart"]) == [
        *(sys.executable, "-P", "-m", "agentmgr", "daemon"),
        *("--db-path", str(here.paths.database)),
        *("--proxy-port", "9090"),
    ]
    assert service["Type"] == "notify"
    assert service["WorkingDirectory"] == str(here.directory)
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    assert getpwnam(service["User"]).pw_uid == os.geteuid()
    (path,) = shlex.split(service["Environment"])
    assert path == f"PATH={here.environment['PATH']}".replace("%", "%%")
    (here.directory / "node").mkdir()
    assert "is no node's: run `agentmgr node --directory node --join" in here.fails("unit", "--node", "node")
    (here.directory / "node" / "node.json").touch()
    of_a_node = here.ok("unit", "--node", "node")
    assert f"agentmgr node --directory {here.directory}/node\n" in of_a_node
    assert "Its instances live on" in of_a_node
    of_the_user = here.ok("unit", "--user")
    assert "WantedBy=default.target" in of_the_user
    assert "User=" not in of_the_user


def test_the_manager_says_that_it_is_ready_alive_and_stopping(shell: Any, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(20)
        shell.environment |= {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"}
        with shell.background("daemon") as daemon:
            assert systemd.recv(100) == b"READY=1"
            assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            daemon.interrupt()
            while (said := systemd.recv(100)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"


def test_shells_complete_commands_and_options(shell: Any) -> None:
    for name in ("bash", "zsh", "fish"):
        assert "_AGENTMGR_COMPLETE" in shell.ok("completion", name)
    done = shell.process(_AGENTMGR_COMPLETE="bash_complete", COMP_WORDS="agentmgr sta", COMP_CWORD="1")
    assert done.stdout.split() == ["plain,start", "plain,status", "plain,stats"]
    done = shell.process(_AGENTMGR_COMPLETE="bash_complete", COMP_WORDS="agentmgr list --sta", COMP_CWORD="2")
    assert done.stdout.split() == ["plain,--status"]
