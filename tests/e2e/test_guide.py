"""The guide's first steps, typed in its order, each command in a process of its own."""

import json
import os
import signal
import urllib.request
from typing import Any

from websockets.sync.client import connect

from tests.terminal import Terminal


def ask(url: str, text: str) -> str | bytes:
    with connect(url) as client:
        client.send(text)
        return client.recv(timeout=60)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.read())


def pid_of(terminal: Terminal, name: str) -> int:
    pid = terminal.json("status", name)["instances"][0]["pid"]
    assert isinstance(pid, int)
    return pid


def test_the_guides_first_steps(terminal: Terminal) -> None:
    registered = terminal.run(
        "register", "my-echo-agent", "my_agent.py",
        "--description", "My echo agent", "--tags", "echo,demo", "--auto-start",
    )  # fmt: skip
    assert "daemon.log" in registered.stderr  # a manager was started in the background, and said so

    assert "my-echo-agent" in terminal.run("list").stdout
    (listed,) = terminal.json("list", "--status", "running", "--tags", "echo")
    assert (listed["name"], listed["status"], listed["tags"]) == (
        "my-echo-agent",
        "running",
        ["demo", "echo"],
    )
    assert terminal.json("list", "--tags", "weather") == []
    assert "My echo agent" in terminal.run("status", "my-echo-agent").stdout
    assert terminal.json("stats")["services"]["running"] == 1

    proxy = terminal.start("proxy", "--host", "localhost", "--port", "0")
    gateway = proxy.wait_for(r"ws://localhost:\d+")
    api = terminal.start("api", "--host", "localhost", "--port", "0", "--proxy-port", "0")
    other_gateway = api.wait_for(r"ws://localhost:\d+")
    base = api.wait_for(r"http://localhost:\d+")

    assert ask(gateway, "hello") == ask(other_gateway, "hello") == "You said: hello"
    assert terminal.run("chat", gateway, "--once", "hello").stdout == "You said: hello\n"
    assert get(f"{base}/health")["status"] == "healthy"
    assert get(f"{base}/api/v1/services")["items"][0]["name"] == "my-echo-agent"

    for command, status in (("stop", "stopped"), ("start", "running"), ("restart", "running")):
        terminal.run(command, "my-echo-agent")
        assert terminal.json("status", "my-echo-agent")["status"] == status
    assert ask(gateway, "again") == "You said: again"

    # Ctrl-C ends what that command started, and nothing else.
    assert proxy.interrupt() == 0
    assert ask(other_gateway, "still") == "You said: still"
    assert api.interrupt() == 0
    assert terminal.json("status", "my-echo-agent")["status"] == "running"

    terminal.run("unregister", "my-echo-agent", "--force")  # it has sessions, which are erased
    assert terminal.json("list") == []

    daemon = terminal.start("daemon", "--interval", "10")
    daemon.wait_for("managing")
    terminal.run("shutdown")
    assert daemon.wait() == 0
    terminal.run("shutdown")  # that there is none is no failure
    assert terminal.processes() == []


def test_an_agent_that_is_killed_is_back_in_a_moment(terminal: Terminal) -> None:
    terminal.run("register", "echo", "my_agent.py", "--auto-start")
    first = pid_of(terminal, "echo")
    events = terminal.start("events", "--follow")
    os.kill(first, signal.SIGKILL)
    events.wait_for("instance.backoff")
    events.wait_for("instance.backoff(.|\n)*instance.running")
    assert pid_of(terminal, "echo") != first
    assert terminal.json("status", "echo")["restart_count"] == 1
    terminal.run("shutdown")
    events.wait()
    assert terminal.processes() == []


def test_a_daemon_takes_the_place_of_a_background_manager_but_of_no_other(terminal: Terminal) -> None:
    terminal.run("register", "echo", "my_agent.py", "--auto-start")
    instance = pid_of(terminal, "echo")
    proxy = terminal.start("proxy", "--port", "0")
    gateway = proxy.wait_for(r"ws://localhost:\d+")
    with connect(gateway) as client:
        client.send("hello")
        assert client.recv(timeout=60) == "You said: hello"
        daemon = terminal.start("daemon")
        daemon.wait_for("took over(.|\n)*managing")
        assert pid_of(terminal, "echo") == instance
        # The gateway's terminal goes on, with its sessions and with new clients.
        client.send("still here?")
        assert client.recv(timeout=60) == "You said: still here?"
        assert ask(gateway, "hello") == "You said: hello"
    assert "already" in terminal.refused("daemon")
    assert daemon.interrupt() == 0
    assert proxy.wait() == 0, proxy.seen
    assert terminal.processes() == []
