"""kill -9 of a manager while an instance drains: the next one goes on with that, and no answer is lost."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from agentmgr.supervisor.host_drain import HostDrain

THINKING = """
from pathlib import Path
import trio

HERE = Path(__file__).parent

def create_agent():
    async def answer(message):
        HERE.joinpath("thinks").touch()
        while not HERE.joinpath("go-on").exists():
            await trio.sleep(0.01)
        return f"answer to {message}"
    return answer
"""


def close_code(instance: dict[str, Any]) -> int | None:
    """What it is to close with; None while it does not drain."""
    environment = Path(f"/proc/{instance['pid']}/environ").read_text().split("\0")
    (token,) = (each.partition("=")[2] for each in environment if each.startswith("AGENTMGR_INSTANCE_TOKEN="))
    return trio.run(HostDrain(instance["host"], instance["port"], token).close_code)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it has not come true in a minute"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "runs_afterwards"),
    [
        (("stop", "svc"), False),
        (("restart", "svc"), True),
        (("restart", "svc", "--no-rolling"), True),
        (("shutdown",), True),
    ],
)
@pytest.mark.parametrize("port", ["any", "fixed"])
def test_the_next_manager_goes_on_with_a_drain(
    shell: Any, write: Any, words: tuple[str, ...], runs_afterwards: bool, port: str, free_port: int
) -> None:
    write("think.py", THINKING)
    fixed = ["--port", str(free_port)] if port == "fixed" else []
    shell.ok("register", "svc", "think.py", "--auto-start", "--drain-timeout", "60", *fixed)

    def instances() -> list[dict[str, Any]]:
        (service,) = json.loads(shell.ok("list", "--format", "json"))
        return list(service["instances"])

    (before,) = instances()
    with connect(f"ws://{before['host']}:{before['port']}") as client:
        client.send("q")
        until((shell.directory / "thinks").exists)
        with shell.background(*words):
            until(lambda: any(i["pid"] == before["pid"] and i["status"] == "draining" for i in instances()))
            until(lambda: close_code(before))  # just before that, a restart would be forgotten
            shell.kill_manager()
        assert shell.lives(before["pid"])
        with shell.background("daemon") as manager:
            manager.until("manager")
            if runs_afterwards and port == "any":  # another one takes its place while it thinks on
                until(
                    lambda: any(i["status"] == "running" and i["pid"] != before["pid"] for i in instances())
                )
            assert shell.lives(before["pid"])
            code = 1012 if runs_afterwards else 1001
            until(lambda: close_code(before) == code)  # also where a shutdown had asked for another
            (shell.directory / "go-on").touch()
            assert client.recv(timeout=60) == "answer to q"
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=60)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
            until(lambda: not shell.lives(before["pid"]))
            if runs_afterwards:
                until(lambda: [i["status"] for i in instances()] == ["running"])
                assert instances()[0]["pid"] != before["pid"]
            else:
                until(lambda: instances() == [])
            manager.interrupt(signal.SIGTERM)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
