"""The daemon, the proxy and the API in terminals of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conditions import heard

LONG = """
import trio

def create_agent():
    async def answer(message):
        while True:
            yield "and "
            await trio.sleep(0.05)
    return answer
"""


def talk(url: str, text: str) -> str:
    with connect(url, open_timeout=60) as client:
        client.send(text)
        answer = heard(client)
        assert isinstance(answer, str)
        return answer


def test_the_daemon_in_the_foreground(shell: Any) -> None:
    with shell.background("daemon", "--interval", "10", "--api-port", "0", "--proxy-port", "0") as daemon:
        daemon.until("managing")
        daemon.until("gateway at ws://localhost:")
        daemon.until("API at http://localhost:")
        refused = shell.fails("daemon")
        assert str(daemon.process.pid) in refused, "a second one names the owner"
        assert "not running" not in shell.ok("info")
        shell.ok("shutdown")
        assert daemon.process.wait(timeout=60) == 0


def test_proxy_and_api_without_a_manager_are_one_themselves(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    shell.ok("shutdown")
    with shell.background("proxy", "--port", "0", "--health-interval", "5") as proxy:
        url = proxy.until("gateway at").split()[-1]
        # What was to run runs again; a client that comes early waits for it.
        assert talk(url, "hello") == "echo: hello"
        assert shell.manager_pid() == proxy.process.pid
        assert proxy.interrupt()[0] == 0
    assert "not running" in shell.ok("info")
    assert "0/1" in shell.ok("list")
    with shell.background("api", "--port", "0") as api:
        api.until("API at")
        assert shell.manager_pid() == api.process.pid
        shell.ok("shutdown")
        assert api.process.wait(timeout=60) == 0


def test_what_a_proxy_opened_ends_with_the_manager(shell: Any) -> None:
    with shell.background("daemon") as daemon:
        daemon.until("managing")
        with shell.background("proxy", "--port", "0") as proxy:
            proxy.until("gateway at")
            shell.ok("shutdown")
            proxy.until("the manager has ended")
            assert proxy.process.wait(timeout=60) == 0


def test_a_gateway_that_api_opened_beside_a_manager_outlives_it(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    with shell.background("api", "--port", "0", "--proxy-port", "0") as api:
        url = api.until("gateway at").split()[-1]
        with connect(url, open_timeout=60) as client:
            shell.kill_manager()
            client.send("hello")
            assert heard(client) == "echo: hello"
            shell.ok("start", "echo")
            api.until("opening again")
            api.until("API at")
            client.send("and then?")
            assert heard(client) == "echo: and then?"
        shell.ok("shutdown")
        api.until("the manager has ended")
        assert api.process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    "command",
    [["daemon", "--proxy-port", "0"], ["proxy", "--port", "0"], ["api", "--port", "0", "--proxy-port", "0"]],
)
def test_a_second_ctrl_c_cuts_short_what_the_first_one_waits_for(
    shell: Any, write: Any, command: list[str]
) -> None:
    write("long_agent.py", LONG)
    shell.ok("register", "long", "long_agent.py", "--auto-start")
    shell.ok("shutdown")
    with shell.background(*command) as manager:
        url = manager.until("gateway at").split()[-1]
        with connect(url, open_timeout=60) as client, ThreadPoolExecutor(1) as pool:
            client.send(json.dumps({"event": "user.message", "content": "go on"}))
            said = threading.Event()

            def listen() -> float:
                """Hears a turn that does not end; until when it could."""
                with suppress(ConnectionClosed):
                    while True:
                        if json.loads(client.recv(timeout=60))["event"] == "agent.partial_answer":
                            said.set()
                return time.monotonic()

            listening = pool.submit(listen)
            assert said.wait(60)
            manager.process.send_signal(signal.SIGINT)
            manager.until("a second Ctrl-C cuts them short")
            for _ in range(20):
                said.clear()
                assert said.wait(60)
            assert manager.process.poll() is None
            begin = time.monotonic()
            assert manager.interrupt()[0] == 0
            assert listening.result(60) - begin < 15, "half of the drain timeout"


def test_the_gateway_that_a_command_opens_is_said_once(shell: Any) -> None:
    with shell.background("proxy", "--port", "0") as proxy:
        line = proxy.process.stdout.readline()
        assert line.startswith("gateway at")
        _, rest = proxy.interrupt()
    assert line.split(":")[-1].strip() not in rest


def test_a_gateway_of_another_version_than_the_manager_says_that_it_is_to_be_started_again(
    shell: Any,
) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    older = (
        "from agentmgr.worker import protocol; protocol.VERSION -= 1; from agentmgr.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", older, "proxy", "--port", "0"],
        cwd=shell.directory,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "or is of another version; then start it again" in done.stderr
