"""The manager's death, its replacement and its proper end, as the workers and their clients see it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from agentmgr import AgentManager, Connection, ServiceConfig
from agentmgr.client import ManagerClient
from agentmgr.worker.pidfile import living
from tests.conditions import heard
from tests.faults.conversations import kill_managers_under_clients
from tests.processes import alive


async def register(shell: Any, max_sessions: int = 0) -> None:
    """To run whenever a manager does."""
    async with AgentManager(shell.paths.database) as manager:
        config = ServiceConfig(max_sessions=max_sessions)
        file = str(shell.directory / "my_agent.py")
        await manager.register_service("echo", file, config=config, auto_start=True, wait=False)


def ask(shell: Any, method: str, *words: Any, **options: Any) -> Any:
    """What the manager that runs answers; without a process for the question."""

    async def asked() -> Any:
        async with ManagerClient(shell.paths.control_socket) as manager:
            return await getattr(manager, method)(*words, **options)

    return trio.run(asked)


def shut_down(shell: Any, manager: Any, **options: Any) -> None:
    ask(shell, "request_shutdown", **options)
    assert manager.process.wait(timeout=60) == 0


def die(manager: Any) -> None:
    manager.process.kill()
    manager.process.wait()


@contextmanager
def clients(url: str, count: int) -> Iterator[list[ClientConnection]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connect(url, open_timeout=60)) for _ in range(count)]


def talk(client: ClientConnection, text: str) -> None:
    client.send(text)
    assert heard(client) == f"echo: {text}"


def serves(url: str) -> None:
    """Returns when an instance runs and the gateway knows it."""
    with connect(url, open_timeout=60) as client:
        talk(client, "first")


def refused(url: str) -> bool:
    try:
        with connect(url, open_timeout=0.5):
            return False
    except TimeoutError:  # it waits for a seat
        return True


def listed(shell: Any) -> list[Connection]:
    return list(ask(shell, "list_connections"))


def pids(shell: Any) -> set[int]:
    return {mark.pid for mark in living(shell.paths.workers)}


def daemon(shell: Any, port: str, *options: str) -> Any:
    return shell.background("daemon", "--proxy-port", port, "--workers", "2", *options)


def close_code(client: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=60)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def test_a_managers_death_costs_no_session_and_the_next_one_takes_its_workers_over(shell: Any) -> None:
    trio.run(register, shell, 3)
    with daemon(shell, "0") as first:
        url = first.until("gateway at ws").split()[-1]
        port = url.rpartition(":")[2]
        with clients(url, 2) as (one, two):
            talk(one, "before")
            workers = pids(shell)
            assert len(workers) == 2
            die(first)
            talk(one, "without a manager")
            two.close()  # its seat can be used again, by who comes to the same worker
            with daemon(shell, port) as second:
                second.until("gateway at ws")
                assert pids(shell) == workers, "taken over, and none beside them"
                talk(one, "with another manager")
                (connection,) = listed(shell)
                with clients(url, 2) as others:
                    for other in others:
                        talk(other, "hello")
                    assert len(listed(shell)) == 3
                    assert refused(url), "there are three seats, and those from before count"
                ask(shell, "disconnect", connection.connection_id)
                assert close_code(one) == 1008
                shut_down(shell, second)
    assert not any(alive(pid) for pid in workers)


async def test_kills_of_the_manager_cut_no_connection_and_lose_no_message(tmp_path: Path) -> None:
    await kill_managers_under_clients(tmp_path, clients=20, kills=2, random=Random())


def test_new_clients_are_routed_while_no_manager_runs(shell: Any) -> None:
    trio.run(register, shell)
    with daemon(shell, "0") as manager:
        url = manager.until("gateway at ws").split()[-1]
        serves(url)
        die(manager)
        with clients(url, 6) as found:
            for client in found:
                talk(client, "hello")
            with daemon(shell, url.rpartition(":")[2]) as second:
                second.until("gateway at ws")
                assert len(listed(shell)) == 6, "what happened meanwhile is told"
                shut_down(shell, second)
                assert {close_code(client) for client in found} == {1001}


def test_a_stranger_on_the_port_of_a_dead_instance_gets_nothing_of_a_client(shell: Any) -> None:
    trio.run(register, shell)
    with daemon(shell, "0") as manager:
        url = manager.until("gateway at ws").split()[-1]
        serves(url)
        (instance,) = ask(shell, "get_service", "echo").instances
        die(manager)
        os.kill(instance.pid, signal.SIGKILL)
        wait_for(lambda: not alive(instance.pid))
        with socket.create_server(("127.0.0.1", instance.port)) as stolen, ExitStack() as stack:
            heard = stack.enter_context(ThreadPoolExecutor()).submit(hear, stolen)
            headers = {"Authorization": "Bearer secret", "Cookie": "login=secret"}
            with (
                pytest.raises(InvalidStatus) as refused,
                connect(f"{url}/path?token=secret", additional_headers=headers, open_timeout=60),
            ):
                pass
            assert refused.value.response.status_code in (502, 504)
            request = heard.result(timeout=60)
        assert request.startswith(b"GET /.well-known/agentmgr/health?challenge=")
        assert b"secret" not in request
        shell("shutdown")


def hear(listener: socket.socket) -> bytes:
    """What the first client sends before it is answered."""
    client, _ = listener.accept()
    with client:
        return client.recv(65536)


def test_an_upgrade_keeps_the_sessions(shell: Any) -> None:
    trio.run(register, shell)
    with daemon(shell, "0") as first:
        url = first.until("gateway at ws").split()[-1]
        with clients(url, 1) as (client,):
            workers = pids(shell)
            talk(client, "before")
            shut_down(shell, first, leave_running=True)
            talk(client, "in between")
            with daemon(shell, url.rpartition(":")[2]) as second:
                second.until("gateway at ws")
                talk(client, "after")
                assert pids(shell) == workers
                shut_down(shell, second)


def test_a_proxy_in_its_own_terminal_outlives_the_manager_and_ends_alone(shell: Any) -> None:
    trio.run(register, shell)
    with ExitStack() as stack:
        first = stack.enter_context(shell.background("daemon"))
        first.until("managing")
        proxy = stack.enter_context(shell.background("proxy", "--port", "0"))
        url = proxy.until("gateway at ws").split()[-1]
        with clients(url, 1) as (client,):
            talk(client, "before")
            die(first)
            talk(client, "without a manager")
            with shell.background("daemon") as second:
                second.until("managing")
                talk(client, "with another manager")
                assert len(listed(shell)) == 1
                code, said = proxy.interrupt()
                assert code == 0
                assert said.count("con_") == 1, "its end is one line"
                assert close_code(client) == 1001
                assert listed(shell) == [], "the manager goes on"
                shut_down(shell, second)


def test_several_workers_in_a_terminal_end_with_it(shell: Any) -> None:
    trio.run(register, shell)
    with shell.background("daemon") as manager:
        manager.until("managing")
        with shell.background("proxy", "--port", "0", "--workers", "2") as proxy:
            url = proxy.until("gateway at ws").split()[-1]
            workers = pids(shell)
            assert len(workers) == 2
            with clients(url, 1) as (client,):
                talk(client, "hello")
                proxy.process.kill()  # without a chance to tell them
                assert close_code(client) == 1001
        wait_for(lambda: not any(alive(pid) for pid in workers))
        with shell.background("proxy", "--port", "0", "--workers", "2") as proxy:
            proxy.until("gateway at ws")
            shut_down(shell, manager)
            proxy.until("the manager has ended")
            assert proxy.process.wait(timeout=60) == 0


def test_a_shutdown_without_a_manager_ends_what_serves_the_gateway(shell: Any) -> None:
    with daemon(shell, "0") as manager:
        manager.until("gateway at ws")
        workers = pids(shell)
        die(manager)
        assert "2 processes" in shell("shutdown").stderr
        assert not any(alive(pid) for pid in workers)


def test_a_worker_that_does_not_answer_the_next_manager_is_replaced(shell: Any) -> None:
    with daemon(shell, "0") as first:
        url = first.until("gateway at ws").split()[-1]
        hung, well = sorted(pids(shell))
        die(first)
        os.kill(hung, signal.SIGSTOP)
        with daemon(shell, url.rpartition(":")[2]) as second:
            second.until("gateway at ws")
            assert not alive(hung)
            assert well in pids(shell)
            assert len(pids(shell)) == 2
            shut_down(shell, second)


def wait_for(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
