"""What programs may rely on: `--format json` prints what the command's help says, key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import trio
from websockets.sync.client import connect

from agentmgr.cli.json_output import PRINTED
from tests.cli.test_conversations import stock
from tests.cli.test_usage import every_command

DOCUMENTED = {command: (shape, set(keys)) for command, (shape, keys) in PRINTED.items()}


def keys_of(printed: str, shape: str) -> set[str]:
    if shape == "lines":
        return set(json.loads(printed.splitlines()[0]))
    value = json.loads(printed)
    assert isinstance(value, list) == (shape == "array")
    return set(value[0] if isinstance(value, list) else value)


def without_cluster() -> set[str]:
    """The others are tried in `tests/cluster`."""
    return {name for name in DOCUMENTED if not name.startswith("nodes ")}


def check_each(shell: Any, commands: Iterable[str]) -> None:
    for name in commands:
        shape, keys = DOCUMENTED[name]
        words = name.replace("NAME", "one").replace("ID", "ses_aa1").split()
        printed = shell(*words, "--format", "json").stdout
        assert keys_of(printed, shape) == keys, name


def test_what_is_printed_has_the_keys_that_are_documented(shell: Any) -> None:
    shell.ok("register", "one", "my_agent.py")
    shell.ok("routes", "add", "all", "--service", "one")
    with shell.background("daemon", "--proxy-port", "0") as daemon:
        gateway = daemon.until("gateway at").split()[-1]
        shell.ok("start", "one")
        with connect(gateway) as client:
            client.send("hi")
            client.recv(timeout=20)
            shell.ok("tokens", "create", "dash", "--scope", "read")
            (service,) = json.loads(shell.ok("list", "--format", "json"))
            trio.run(stock, shell.paths.sessions / f"{service['service_id']}.db")
            check_each(shell, without_cluster())
    check_each(shell, without_cluster() - {"connections"})  # with no manager, off the database


def test_each_command_that_prints_json_is_documented() -> None:
    able = {name for name, command in every_command() if "output" in {p.name for p in command.params}}
    assert {name.removesuffix(" NAME").removesuffix(" ID") for name in DOCUMENTED} == able


def test_its_help_says_which_keys_there_are(shell: Any) -> None:
    said = shell.ok("status", "--help")
    for name in ("status", "status NAME"):
        assert DOCUMENTED[name][1] <= set(re.findall(r"\w+", said.partition("JSON:")[2]))
