"""Wrong usage, failures, help: what the command line says, and its exit codes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from typing import Any

import asyncclick as click
import attrs
import pytest

from agentmgr import __version__
from agentmgr.cli.commands.change import command as change
from agentmgr.cli.commands.register import command as register
from agentmgr.cli.group import _ELSEWHERE, COMMANDS, Command, Group, LazyGroup, root
from agentmgr.models import ServiceConfig
from agentmgr.websocket.refusal import WHAT_HELPS


def every_command() -> list[tuple[str, click.Command]]:
    assert isinstance(root, LazyGroup)
    context = click.Context(root)
    found = []
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {child}", sub) for child, sub in command.commands.items()]
    return found


def test_a_node_without_the_extra_says_what_to_install_and_makes_nothing(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    assert "pip install 'agentmgr-trio[cluster]'" in here.fails("node", "--join", "localhost:9443")
    assert not (here.directory / "agent_node.d").exists()
    assert "--db-path" not in here.ok("node", "--help"), "it has no database"


def test_the_version(here: Any, shell: Any) -> None:
    assert shell.process("--version").stdout == here.ok("--version")
    assert here.ok("--version") == f"agentmgr {__version__}\n"
    assert __version__ in here.ok("version")
    assert json.loads(here.ok("version", "--format", "json"))["agentmgr"] == __version__


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["list", "--nonsense"],
        ["list", "--status", "happy"],
        ["register"],
        ["register", "x"],
        ["register", "x", "my_agent.py", "--port", "0"],
        ["register", "x", "my_agent.py", "--port", "70000"],
        ["register", "x", "my_agent.py", "--max-sessions", "many"],
        ["register", "x", "my_agent.py", "--", "node", "server.js"],
        ["start"],
        ["scale", "x", "0"],
        ["scale", "x", "5..2"],
        ["change", "x"],
        ["routes", "change", "x"],
        ["proxy", "--port", "x"],
    ],
)
def test_wrong_usage_is_2(here: Any, words: list[str]) -> None:
    assert "Error" in here.fails(*words, code=2)


def test_a_slip_of_the_finger_gets_a_hint(here: Any) -> None:
    assert "Did you mean stats or start?" in here.fails("strat", "x", code=2)
    assert "Did you mean" not in here.fails("gibberish", code=2)
    assert "Did you mean list?" in here.fails("ps", code=2)
    assert set(_ELSEWHERE.values()) <= set(COMMANDS)
    assert not _ELSEWHERE.keys() & COMMANDS.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["register", "x", "nowhere.py"], "nowhere.py"),
        (["register", "x y", "my_agent.py"], "name"),
        (["register", "x", "my_agent.py", "--max-sessions", "-1"], "max_sessions"),
        (["register", "x", "my_agent.py", "--tags", "a b"], "tags"),
        (["register", "x", "my_agent.py", "--env", "NOPE"], "--env"),
        (["stop", "nobody"], "nobody"),
        (["unregister", "nobody"], "nobody"),
        (["routes", "add", "x", "--when", "path", "like", "a"], "like"),
        (["routes", "remove", "nobody"], "nobody"),
        (["list", "--db-path", "/proc/none/x.db"], "/proc/none"),
        (["register", "x", "my_agent.py", "--db-path", "/proc/none/x.db"], "/proc/none"),
        (["register", "x", "my_agent.py", "--db-path", "/proc/x.db"], "no directory can be made there"),
    ],
)
def test_a_failure_is_1_with_one_clear_line(here: Any, words: list[str], said: str) -> None:
    (line,) = here.fails(*words).splitlines()
    assert line.startswith("Error: ")
    assert said in line


def test_debug_shows_the_traceback(here: Any) -> None:
    for words in (["--debug", "stop", "nobody"], ["stop", "nobody", "--debug"]):
        done = here(*words)
        assert done.returncode == 1
        assert "Traceback" in done.stderr


def test_a_failed_start_shows_the_programs_own_words(shell: Any, write: Any) -> None:
    write("broken.py", "def create_agent():\n    return unknown_name\n")
    done = shell("register", "broken", "broken.py", "--auto-start")
    assert (done.returncode, done.stdout) == (1, "")
    assert "unknown_name" in done.stderr
    assert "error" in shell.ok("list")
    assert "unknown_name" in shell("status", "broken").stdout
    done = shell("start", "broken")
    assert done.returncode == 1
    assert "unknown_name" in done.stderr


def test_every_option_of_the_guide_reaches_the_registration(here: Any) -> None:
    here.ok("register", "y", "my_agent.py")
    here.ok(
        "register", "x", "my_agent.py", "--host", "127.0.0.1", "--port", "18081", "--description", "d",
        "--tags", "a, b", "--max-sessions", "3", "--session-timeout", "60.5", "--no-auto-restart",
        "--max-restart-count", "7", "--restart-delay", "0.5", "--env", "A=word", "--env-file", "vars.env",
        "--stop-timeout", "3", "--after", "y",
    )  # fmt: skip
    service, _ = json.loads(here.ok("list", "--format", "json"))
    config = service["config"]
    assert (service["host"], service["port"], service["tags"]) == ("127.0.0.1", 18081, ["a", "b"])
    assert (config["max_sessions"], config["session_timeout"]) == (3, 60.5)
    assert (config["auto_restart"], config["max_restart_count"], config["restart_delay"]) == (False, 7, 0.5)
    assert (config["env"], config["env_file"]) == ({"A": "***"}, "vars.env")
    assert config["after"] == ["y"]
    assert config["cwd"] == str(here.directory)


def test_a_change_is_of_what_is_given_and_of_nothing_else(here: Any) -> None:
    here.ok(
        "register",
        "x",
        "my_agent.py",
        "--port",
        "18081",
        "--env",
        "API_KEY=s3cret",
        "--env",
        "A=1",
        "--env-public",
        "A",
    )
    (before,) = json.loads(here.ok("list", "--format", "json"))
    assert here.ok("change", "x", "--memory-limit-mb", "64", "--restart", "always", "--tags", "a,b") == (
        "changed x\n"
    )
    here.ok("change", "x", "--env", "A=2", "--no-auto-restart", "--rename", "y")
    here.ok("change", "y", "--port", "0")
    assert (
        here.ok("change", "y", "--memory-limit-mb", "64") == "y is unchanged: it has these values already\n"
    )
    (after,) = json.loads(here.ok("list", "--format", "json"))
    assert (after["name"], after["tags"], after["port"]) == ("y", ["a", "b"], None)
    wanted = {"memory_limit_mb": 64, "restart": "always", "auto_restart": False}
    env = {"API_KEY": "***", "A": "2"}
    assert after["config"] == before["config"] | wanted | {"env": env}
    with sqlite3.connect(here.directory / "agent_manager.db") as database:
        assert "s3cret" in str(database.execute("select * from services").fetchall())
    database.close()


def test_an_option_is_taken_back(here: Any) -> None:
    given = ("--schedule", "0 3 * * *", "--memory-limit-mb", "64", "--env", "A=1", "--restart", "never")
    here.ok("register", "x", *given, "--", "true")
    unset = ("--unset", "schedule", "--unset", "memory-limit-mb", "--unset", "env", "--unset", "restart")
    assert here.ok("change", "x", *unset) == "changed x\n"
    (after,) = json.loads(here.ok("list", "--format", "json"))
    config = after["config"]
    assert (config["schedule"], config["memory_limit_mb"], config["env"]) == (None, None, {})
    assert config["restart"] == "on-failure"
    assert "say one of them" in here("change", "x", "--cwd", "/", "--unset", "cwd").stderr
    assert here("change", "x", "--unset", "name").returncode == 2


def test_what_helps_against_a_refusal_is_explained(here: Any) -> None:
    assert "at_capacity, HTTP status 503: " in here.ok("explain", "at_capacity")
    assert "did you mean at_capacity?" in here.fails("explain", "at_capcity")
    assert {line.split()[0] for line in here.ok("explain").splitlines()[1:]} == set(WHAT_HELPS)


def test_status_shows_whom_a_hook_leads_to_and_not_its_key(here: Any) -> None:
    here.ok("register", "x", "--on-failure", "https://me:pw@hooks.example:8443/T0/s3cret?key=1", "--", "true")
    assert "https://hooks.example:8443/***" in here.ok("status", "x")
    here.ok("change", "x", "--on-failure", "/bin/page me")
    assert "/bin/page me" in here.ok("status", "x")


def test_a_change_that_waits_for_a_restart_says_so(shell: Any) -> None:
    shell.ok("register", "x", "my_agent.py", "--auto-start")
    assert "agentmgr restart x" in shell("change", "x", "--memory-limit-mb", "64").stderr
    assert shell("change", "x", "--tags", "a").stderr == ""


def test_a_command_behind_two_dashes_is_the_services_own(here: Any) -> None:
    here.ok("register", "x", "--tags", "a", "--", "node", "server.js", "--port", "{port}", "--tags")
    (service,) = json.loads(here.ok("list", "--format", "json"))
    assert service["command"] == ["node", "server.js", "--port", "{port}", "--tags"]
    assert service["tags"] == ["a"]


def test_rules_by_command_line(here: Any) -> None:
    here.ok(
        "routes", "add", "vip", "--when", "user_agent", "contains", "VIP", "--when", "client_ip", "in_cidr",
        "10.0.0.0/8, 127.0.0.1/32", "--ignore-case", "--tags", "premium", "--strategy", "least_connections",
        "--priority", "1",
    )  # fmt: skip
    here.ok("routes", "change", "vip", "--priority", "5", "--description", "for VIPs")
    here.ok("routes", "disable", "vip")
    (rule,) = json.loads(here.ok("routes", "list", "--format", "json"))
    assert [(c["field"], c["value"], c["case_sensitive"]) for c in rule["conditions"]] == [
        ("user_agent", "VIP", False),
        ("client_ip", ["10.0.0.0/8", "127.0.0.1/32"], False),
    ]
    assert (rule["priority"], rule["enabled"], rule["target_strategy"]) == (5, False, "least_connections")
    here.ok("routes", "enable", "vip")
    here.ok("routes", "remove", "vip")
    assert here.ok("routes", "list") == ""


@pytest.mark.parametrize(("name", "command"), every_command())
def test_every_command_has_help_with_an_example_that_fits(name: str, command: click.Command) -> None:
    assert command.help, "says what it does"
    assert isinstance(command, Command | Group)
    assert f"agentmgr {name}" in command.example
    if " " not in name:
        assert command.get_short_help_str()


def test_help_needs_no_command_to_be_imported(here: Any) -> None:
    text = here.ok("--help")
    for name in COMMANDS:
        assert f"  {name} " in text
    assert "Example" in here.ok("register", "--help")
    assert "agentmgr list --status running" in here.ok("list", "-h")


@pytest.mark.parametrize("module", ["list", "status", "start", "stop", "shutdown", "info"])
def test_a_command_that_only_asks_imports_no_server(module: str) -> None:
    code = (
        f"import sys; import agentmgr.cli.entry, agentmgr.cli.commands.{module}, agentmgr.client.api\n"
        "print(*{'quart', 'hypercorn', 'structlog', 'httpx2', 'rich', 'sqlite3'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_reader_that_leaves_early_is_no_error(shell: Any) -> None:
    for number in range(3):
        shell.ok("register", f"s{number}", "my_agent.py")
    done = subprocess.run(
        f"{sys.executable} -m agentmgr list | true",
        shell=True, cwd=shell.directory, env=shell.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


def test_every_field_of_a_service_has_an_option() -> None:
    fields = {field.name for field in attrs.fields(ServiceConfig)}
    for command in (register, change):
        options = {parameter.name for parameter in command.params}
        assert fields - options == {"agent_factory_path", "command"}
