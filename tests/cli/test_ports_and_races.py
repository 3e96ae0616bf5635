"""A command that cannot open its ports, or comes second, does no harm to what runs."""

import json
import socket
import time
from typing import Any

import pytest

from agentmgr.process.ownership import is_starting


def pid(shell: Any) -> int:
    (instance,) = json.loads(shell.ok("status", "echo", "--format", "json"))["instances"]
    assert isinstance(instance["pid"], int)
    return instance["pid"]


def comes_up(shell: Any) -> None:
    """Returns when a manager is on its way, or there already: this process may have been held up."""
    while not (is_starting(shell.paths) or shell.manager_pid()):
        time.sleep(0.001)


@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize(
    "command", [("daemon", "--proxy-port"), ("daemon", "--api-port"), ("proxy", "--port"), ("api", "--port")]
)
def test_a_port_that_is_taken_costs_no_service(shell: Any, command: tuple[str, str], leave: bool) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    before = pid(shell)
    if leave:
        shell.ok("shutdown", "--leave-running")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} on 127.0.0.1" in shell.fails(*command, port, "--host", "127.0.0.1")
    if leave:
        shell.ok("start", "echo")
    assert pid(shell) == before


def test_two_that_become_the_manager_at_once_become_one(shell: Any) -> None:
    with (
        shell.background("proxy", "--port", "0") as proxy,
        shell.background("api", "--port", "0") as api,
        shell.background("proxy", "--port", "0") as another,
    ):
        proxy.until("gateway at")
        api.until("API at")
        another.until("gateway at")


@pytest.mark.parametrize("first", ["command", "daemon"])
@pytest.mark.parametrize("words", [("start", "echo"), ("restart", "echo"), ("register", "x", "my_agent.py")])
def test_a_command_and_a_daemon_that_begin_at_once_both_do_their_work(
    shell: Any, first: str, words: tuple[str, ...]
) -> None:
    shell.ok("register", "echo", "my_agent.py")
    words = (*words, "--auto-start") if words[0] == "register" else words
    with shell.background("daemon") as daemon:
        if first == "daemon":
            comes_up(shell)
        assert "is running at" in shell.ok(*words)
        daemon.until("managing")
        assert shell.manager_pid() == daemon.process.pid, "that of the terminal is the manager in the end"


def test_a_look_at_what_is_there_waits_for_a_manager_that_is_coming_up(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    shell.ok("shutdown")
    with shell.background("daemon") as daemon:
        comes_up(shell)
        assert "the manager has ended" in shell.ok("shutdown")
        daemon.until("managing")


def test_a_daemon_leaves_the_port_to_a_terminal_that_serves_there(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    before = pid(shell)
    with shell.background("proxy", "--host", "127.0.0.1", "--port", "0") as proxy:
        port = proxy.until("gateway at").rpartition(":")[2].strip()
        refusal = shell.fails("daemon", "--host", "127.0.0.1", "--proxy-port", port)
        assert "serves this database already" in refusal
        assert pid(shell) == before


def test_a_port_that_the_manager_serves_already_is_said_to_be_its_own(shell: Any) -> None:
    with shell.background("daemon", "--proxy-port", "0", "--api-port", "0") as daemon:
        gateway = daemon.until("gateway at").split()[-1]
        api = daemon.until("API at").split()[-1]
        for command, address in (("proxy", gateway), ("api", api.removesuffix("/docs"))):
            said = shell.fails(command, "--port", address.rpartition(":")[2])
            assert f"{address} already" in said.replace("/docs", "")
        with socket.create_server(("localhost", 0)) as taken:
            port = str(taken.getsockname()[1])
            for command in ("proxy", "api"):
                assert "stop what holds it" in shell.fails(command, "--port", port)
