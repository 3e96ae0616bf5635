"""The guide's commands, in its order, each in its own process, on one database."""

from __future__ import annotations

import json
from typing import Any

from websockets.sync.client import connect


def talk(url: str, text: str) -> str:
    with connect(url, open_timeout=10) as client:
        client.send(text)
        answer = client.recv(timeout=10)
        assert isinstance(answer, str)
        return answer


def test_the_guides_first_steps(shell: Any) -> None:
    done = shell(
        "register", "my-echo-agent", "my_agent.py",
        "--description", "My echo agent", "--tags", "echo,demo", "--auto-start",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert str(shell.paths.daemon_log) in line

    assert "my-echo-agent" in shell.ok("list")
    (service,) = json.loads(shell.ok("list", "--status", "running", "--tags", "echo", "--format", "json"))
    assert (service["name"], service["status"]) == ("my-echo-agent", "running")
    assert service["description"] == "My echo agent"
    assert shell.ok("list", "--status", "stopped") == ""
    assert shell.ok("list", "--tags", "weather") == ""

    status = shell.ok("status", "my-echo-agent")
    assert "running" in status
    assert "My echo agent" in status
    assert json.loads(shell.ok("status", "my-echo-agent", "--format", "json"))["name"] == "my-echo-agent"
    assert json.loads(shell.ok("stats", "--format", "json"))["services"]["running"] == 1
    assert "services running" in shell.ok("stats")

    with shell.background("proxy", "--host", "localhost", "--port", "0") as proxy:
        url = proxy.until("gateway at").split()[-1]
        assert talk(url, "hello") == "echo: hello"
        assert "ended_by" in proxy.until("session ended")
        with shell.background("api", "--host", "localhost", "--port", "0", "--proxy-port", "0") as api:
            lines = {api.until(" at ").split(" at ")[0], api.until(" at ").split(" at ")[0]}
            assert lines == {"API", "gateway"}
            code, _ = api.interrupt()
            assert code == 0
        assert talk(url, "still here") == "echo: still here"
        code, _ = proxy.interrupt()
        assert code == 0
    assert json.loads(shell.ok("info", "--format", "json"))["manager"]["listeners"] == []

    assert "stopped" in shell.ok("stop", "my-echo-agent")
    assert "running" in shell.ok("start", "my-echo-agent")
    assert "running" in shell.ok("restart", "my-echo-agent")
    assert "2 instances" in shell.ok("scale", "my-echo-agent", "2")
    assert "2/2" in shell.ok("list")
    assert "got hello" in shell.ok("logs", "my-echo-agent")
    assert "service.registered" in shell.ok("events")
    assert "unregistered" in shell.ok("unregister", "my-echo-agent")

    pid = shell.manager_pid()
    assert pid is not None
    shell.ok("shutdown")
    assert not shell.lives(pid), "it returns when the process is gone"
    assert not shell.paths.control_socket.exists()


def test_the_daemon_in_the_foreground(shell: Any) -> None:
    with shell.background("daemon", "--interval", "10", "--api-port", "0", "--proxy-port", "0") as daemon:
        daemon.until("managing")
        daemon.until("gateway at ws://localhost:")
        daemon.until("API at http://localhost:")
        refused = shell.fails("daemon")
        assert str(daemon.process.pid) in refused, "a second one names the owner"
        assert "not running" not in shell.ok("info")
        shell.ok("shutdown")
        assert daemon.process.wait(timeout=20) == 0


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
        assert api.process.wait(timeout=20) == 0


def test_what_a_proxy_opened_ends_with_the_manager(shell: Any) -> None:
    with shell.background("daemon") as daemon:
        daemon.until("managing")
        with shell.background("proxy", "--port", "0") as proxy:
            proxy.until("gateway at")
            shell.ok("shutdown")
            proxy.until("the manager has ended")
            assert proxy.process.wait(timeout=20) == 0
