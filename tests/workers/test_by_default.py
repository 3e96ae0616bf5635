"""The gateway of `daemon`, `proxy` and `api` is a process of its own unless the settings say otherwise."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
import trio

from tests.ports import own_port
from tests.processes import alive
from tests.workers.test_managers_end import (
    ask,
    clients,
    close_code,
    die,
    pids,
    register,
    serves,
    shut_down,
    talk,
    wait_for,
)


@pytest.mark.parametrize(
    "command", ["daemon --proxy-port 0", "proxy --port 0", "api --port 0 --proxy-port 0"]
)
def test_one_process_serves_and_ctrl_c_ends_it_in_good_order(shell: Any, command: str) -> None:
    trio.run(register, shell)
    with shell.background(*command.split()) as manager:
        url = manager.until("gateway at ws").split()[-1]
        (worker,) = pids(shell)
        assert worker != manager.process.pid
        assert "(1 worker)" in shell.ok("info")
        with clients(url, 1) as (client,):
            talk(client, "hello")
            manager.process.send_signal(signal.SIGINT)
            assert close_code(client) == 1001
        assert manager.process.wait(timeout=60) == 0
    assert not alive(worker)


def test_the_manager_itself_serves_where_that_was_asked_for(shell: Any) -> None:
    (shell.directory / "agentmgr.toml").write_text("proxy_workers = 0\n")
    for command in ("daemon --proxy-port 0", "proxy --port 0", "daemon --proxy-port 0 --workers 0"):
        with shell.background(*command.split()) as manager:
            manager.until("gateway at ws")
            assert not pids(shell)
            assert "worker" not in shell.ok("info")


def test_run_serves_by_itself(shell: Any) -> None:
    with shell.background("run", "my_agent.py", "--proxy-port", "0", "--api-port", "0") as run:
        run.until("my_agent is running")
        assert not pids(shell)


def test_a_proxy_that_manages_may_be_killed_and_its_gateway_goes_on(shell: Any) -> None:
    trio.run(register, shell)
    with shell.background("proxy", "--port", "0") as first:
        url = first.until("gateway at ws").split()[-1]
        with clients(url, 1) as (client,):
            talk(client, "before")
            workers = pids(shell)
            die(first)
            talk(client, "without a manager")
            with shell.background("proxy", "--port", url.rpartition(":")[2]) as second:
                second.until("gateway at ws")
                assert pids(shell) == workers
                talk(client, "after")
                assert second.interrupt()[0] == 0
                assert close_code(client) == 1001
    assert not pids(shell)


def test_a_manager_on_another_port_ends_the_gateway_that_was_left_when_it_ends(shell: Any) -> None:
    trio.run(register, shell)
    with shell.background("daemon", "--proxy-port", "0") as first:
        url = first.until("gateway at ws").split()[-1]
        serves(url)
        left = pids(shell)
        die(first)
    port = str(own_port())
    with clients(url, 1) as (client,):
        talk(client, "without a manager")
        with shell.background("daemon", "--proxy-port", port) as second:
            elsewhere = second.until("gateway at ws").split()[-1]
            assert len(pids(shell) - left) == 1
            with clients(elsewhere, 1) as (other,):
                talk(other, "hello")
                talk(client, "with another manager")
                shut_down(shell, second)
                assert {close_code(client), close_code(other)} == {1001}
    assert not pids(shell)


def test_a_gateway_whose_manager_is_gone_for_good_is_named_and_ended(shell: Any) -> None:
    with shell.background("daemon", "--proxy-port", "0") as manager:
        manager.until("gateway at ws")
        (worker,) = pids(shell)
        die(manager)
        said = shell.ok("info")
        assert f"pid {worker}" in said
        assert "`agentmgr daemon` adopts it" in said
        (finding,) = (f for f in json.loads(shell.ok("doctor", "--format", "json")) if f["what"] == "gateway")
        assert str(worker) in finding["found"]
        assert "ended what served its gateway" in shell("shutdown").stderr
        assert not alive(worker)
        assert "pid" not in shell.ok("info")


def test_an_upgrade_from_a_manager_that_serves_by_itself_keeps_the_instances(shell: Any) -> None:
    trio.run(register, shell)
    with shell.background("daemon", "--proxy-port", "0", "--workers", "0") as first:
        url = first.until("gateway at ws").split()[-1]
        with clients(url, 1) as (client,):
            talk(client, "before")
            (instance,) = ask(shell, "get_service", "echo").instances
            shut_down(shell, first, leave_running=True)
            assert close_code(client) == 1001
        with shell.background("daemon", "--proxy-port", url.rpartition(":")[2]) as second:
            second.until("gateway at ws")
            assert len(pids(shell)) == 1
            with clients(url, 1) as (client,):
                talk(client, "after")
                assert [i.pid for i in ask(shell, "get_service", "echo").instances] == [instance.pid]
                shut_down(shell, second)


def test_another_database_does_not_get_the_port(shell: Any) -> None:
    with shell.background("daemon", "--proxy-port", "0") as first:
        port = first.until("gateway at ws").split()[-1].rpartition(":")[2]
        said = shell.fails("daemon", "--db-path", "other.db", "--proxy-port", port)
        assert f"port {port} on localhost is not available" in said
        assert not (shell.directory / "other.db").exists(), "nothing was begun"


def test_the_gateway_that_dies_is_started_again(shell: Any) -> None:
    trio.run(register, shell)
    with shell.background("daemon", "--proxy-port", "0") as manager:
        url = manager.until("gateway at ws").split()[-1]
        (worker,) = pids(shell)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(pids(shell) - {worker}) == 1)
        wait_for(lambda: ask(shell, "get_info")["listeners"])
        with clients(url, 1) as (client,):
            talk(client, "hello")
        shut_down(shell, manager)
