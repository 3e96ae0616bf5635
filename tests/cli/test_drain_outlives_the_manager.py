"""kill -9 of a manager while an instance drains: the next one goes on with that, and no answer is lost."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from agentmgr.supervisor.host_drain import HostDrain
from agentmgr.supervisor.host_request import HostRequest
from tests.conditions import heard
from tests.ports import own_port

THINKING = """
from pathlib import Path
import trio

HERE = Path(__file__).parent

def create_agent():
    async def answer(message):
        HERE.joinpath(f"thinks-{message}").touch()
        while not HERE.joinpath("go-on").exists():
            await trio.sleep(0.01)
        return f"answer to {message}"
    return answer
"""


def close_code(instance: dict[str, Any]) -> int | None:
    """What it is to close with; None while it does not drain."""
    environment = Path(f"/proc/{instance['pid']}/environ").read_text().split("\0")
    (token,) = (each.partition("=")[2] for each in environment if each.startswith("AGENTMGR_INSTANCE_TOKEN="))
    return trio.run(HostDrain(HostRequest(instance["host"], instance["port"], token)).close_code)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it has not come true in a minute"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "runs_afterwards"),
    [
        (("stop", "{name}"), False),
        (("restart", "{name}"), True),
        (("restart", "{name}", "--no-rolling"), True),
        (("shutdown",), True),
    ],
)
def test_the_next_manager_goes_on_with_a_drain(
    shell: Any, write: Any, words: tuple[str, ...], runs_afterwards: bool
) -> None:
    """Of an instance on any port, whose replacement starts while it drains, and of one on a fixed port."""
    write("think.py", THINKING)
    for name, more in (("any", []), ("fixed", ["--port", str(own_port())])):
        shell.ok("register", name, "think.py", "--auto-start", "--drain-timeout", "60", *more)

    def instances() -> dict[str, list[dict[str, Any]]]:
        listed = json.loads(shell.ok("list", "--format", "json"))
        return {service["name"]: service["instances"] for service in listed}

    def pids(status: str) -> set[int]:
        return {i["pid"] for found in instances().values() for i in found if i["status"] == status}

    before = {name: found[0] for name, found in instances().items()}
    old = {instance["pid"] for instance in before.values()}
    code = 1012 if runs_afterwards else 1001
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(f"ws://{i['host']}:{i['port']}")) for i in before.values()]
        for number, client in enumerate(clients):
            client.send(str(number))
        until(lambda: len(list(shell.directory.glob("thinks-*"))) == len(clients))
        with ExitStack() as commands:
            for line in dict.fromkeys(tuple(w.format(name=name) for w in words) for name in before):
                commands.enter_context(shell.background(*line))
            until(lambda: old <= pids("draining"))
            until(lambda: all(map(close_code, before.values())))  # before that, a restart would be forgotten
            shell.kill_manager()
        assert all(map(shell.lives, old))
        with shell.background("daemon") as manager:
            manager.until("manager")
            if runs_afterwards:  # another one takes the place of `any` while it thinks on
                until(lambda: {i["pid"] for i in instances()["any"] if i["status"] == "running"} - old)
            assert all(map(shell.lives, old))
            # Also where a shutdown had asked for another.
            until(lambda: {close_code(instance) for instance in before.values()} == {code})
            (shell.directory / "go-on").touch()
            for number, client in enumerate(clients):
                assert heard(client) == f"answer to {number}"
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(timeout=60)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == code
            until(lambda: not any(map(shell.lives, old)))
            if runs_afterwards:
                until(
                    lambda: (
                        [[i["status"] for i in found] for found in instances().values()] == [["running"]] * 2
                    )
                )
                assert not pids("running") & old
            else:
                until(lambda: not any(instances().values()))
            manager.interrupt(signal.SIGTERM)
