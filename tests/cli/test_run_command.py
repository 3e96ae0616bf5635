"""`agentmgr run FILE…`: one terminal for services, gateway and API."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conditions import heard


def listening(line: str) -> str:
    return line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_files_and_stops_everything_on_a_signal(shell: Any, write: Any, number: int) -> None:
    write("second.py", "async def create_agent():\n    async def f(m): return 'second'\n    return f\n")
    ports = ("--proxy-port", "0", "--api-port", "0")
    with shell.background("run", "my_agent.py", "second.py", *ports) as running:
        assert "my_agent, second" in running.until("running ")
        url = listening(running.until("clients connect to"))
        running.until("API")
        running.until("is running")
        running.until("is running")
        with connect(f"{url}/services/my_agent", open_timeout=60) as client:
            client.send("hello")
            assert heard(client) == "echo: hello"
            assert running.until("got hello").startswith("my_agent | ")
        pids = [
            instance["pid"]
            for service in json.loads(shell.ok("list", "--format", "json"))
            for instance in service["instances"]
        ]
        assert len(pids) == 2
        code, _ = running.interrupt(number)
        assert code == 0
    assert not any(shell.lives(pid) for pid in pids)
    services = json.loads(shell.ok("list", "--format", "json"))
    assert [service["desired_status"] for service in services] == ["stopped", "stopped"]


def test_a_taken_port_is_replaced_and_said_but_not_one_that_was_asked_for(shell: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        shell.environment |= {"AGENTMGR_PROXY_PORT": port, "AGENTMGR_API_PORT": port}
        with shell.background("run", "my_agent.py") as running:
            assert "using" in running.until(f"port {port} is taken")
            assert port not in running.until("clients connect to")
        assert port in shell.fails("run", "my_agent.py", "--proxy-port", port)


def test_the_same_file_is_found_again_and_another_of_its_name_is_refused(shell: Any, write: Any) -> None:
    ports = ("--proxy-port", "0", "--api-port", "0")
    for _ in range(2):
        with shell.background("run", "my_agent.py", *ports) as running:
            running.until("is running")
    (shell.directory / "other").mkdir()
    write("other/my_agent.py", "def create_agent(): ...\n")
    said = shell.fails("run", "other/my_agent.py", *ports)
    assert "registered already" in said
    assert "unregister" in said
    assert "nowhere.py" in shell.fails("run", "nowhere.py", *ports)


def test_a_stop_before_the_service_was_ready_does_not_end_the_others(shell: Any, write: Any) -> None:
    write("slow.py", "import time\ntime.sleep(300)\ndef create_agent(): ...\n")
    with shell.background("run", "slow.py", "my_agent.py", "--proxy-port", "0", "--api-port", "0") as running:
        running.until("my_agent is running")
        shell.ok("stop", "slow")
        running.until("slow did not start")
        assert "my_agent" in shell.ok("list")


def test_an_agent_that_does_not_start_does_not_end_the_others(shell: Any, write: Any) -> None:
    write("broken.py", "raise RuntimeError('no key')\n")
    with shell.background(
        "run", "broken.py", "my_agent.py", "--proxy-port", "0", "--api-port", "0"
    ) as running:
        url = listening(running.until("clients connect to"))
        named = running.until("broken did not start").split("its log is ")[1].rstrip()
        assert "no key" in Path(named).read_text()
        with connect(f"{url}/services/my_agent", open_timeout=60) as client:
            client.send("hello")
            assert heard(client) == "echo: hello"


def test_why_a_client_is_refused_is_said_where_its_browser_keeps_the_reason_from_it(shell: Any) -> None:
    with shell.background("run", "my_agent.py", "--proxy-port", "0", "--api-port", "0") as running:
        url = listening(running.until("clients connect to"))
        running.until("is running")
        for path, origin, said in (
            ("", "null", "--allow-origin null"),
            ("/services/nosuch", None, "agentmgr list"),
        ):
            with pytest.raises(InvalidStatus), connect(f"{url}{path}", origin=origin, open_timeout=60):
                pass
            assert said in running.until("was refused")


def test_the_end_of_an_instance_is_said(shell: Any) -> None:
    with shell.background("run", "my_agent.py", "--proxy-port", "0", "--api-port", "0") as running:
        running.until("is running")
        (instance,) = json.loads(shell.ok("status", "my_agent", "--format", "json"))["instances"]
        os.kill(instance["pid"], signal.SIGKILL)
        assert running.until("SIGKILL").endswith("it will be started again\n")


def test_who_does_not_read_what_it_shows_holds_up_no_client(shell: Any, write: Any) -> None:
    write("loud.py", "async def agent(message):\n    print('loud ' * 10**6)\n    return 'said'\n")
    with shell.background("run", "loud.py", "--proxy-port", "0", "--api-port", "0") as running:
        url = listening(running.until("clients connect to"))
        running.until("is running")
        with connect(f"{url}/services/loud", open_timeout=60) as client:
            for _ in range(2):
                client.send("hello")
                assert heard(client) == "said"
        assert running.until("loud loud").startswith("loud | ")
