"""The guide's first steps, typed in its order, each command in a process of its own."""

import json
import os
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from tests.e2e.conftest import Terminal


def ask(url: str, text: str) -> str | bytes:
    with connect(url) as client:
        client.send(text)
        return client.recv(timeout=10)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
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

    terminal.run("unregister", "my-echo-agent")
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


def test_what_ran_before_a_kill_of_the_manager_runs_on_and_is_adopted(terminal: Terminal) -> None:
    terminal.run("register", "echo", "my_agent.py", "--auto-start")
    instance = pid_of(terminal, "echo")
    endpoint = terminal.json("status", "echo")["endpoint"]
    manager = terminal.json("info")["manager"]["pid"]
    with connect(endpoint) as client:
        client.send("hello")
        assert client.recv(timeout=10) == "You said: hello"
        os.kill(manager, signal.SIGKILL)
        # A look at the database starts nothing, and says that nobody is in charge.
        assert "unsupervised" in terminal.run("list").stderr
        terminal.run("start", "echo")
        assert pid_of(terminal, "echo") == instance
        client.send("noticed anything?")
        assert client.recv(timeout=10) == "You said: noticed anything?"
    terminal.run("shutdown")
    assert terminal.processes() == []


def test_a_daemon_takes_the_place_of_a_background_manager_but_of_no_other(terminal: Terminal) -> None:
    terminal.run("register", "echo", "my_agent.py", "--auto-start")
    instance = pid_of(terminal, "echo")
    proxy = terminal.start("proxy", "--port", "0")
    proxy.wait_for(r"ws://localhost:\d+")
    daemon = terminal.start("daemon")
    daemon.wait_for("took over(.|\n)*managing")
    assert pid_of(terminal, "echo") == instance
    # The gateway's terminal goes on with the new manager, at a port that was left to chance.
    gateway = proxy.wait_for(r"(?s)ws://.*(ws://localhost:\d+)").splitlines()[-1].split()[-1]
    assert ask(gateway, "hello") == "You said: hello"
    assert "already" in terminal.refused("daemon")
    assert daemon.interrupt() == 0
    assert proxy.wait() == 1
    assert terminal.processes() == []


def test_run_is_all_in_one_command(terminal: Terminal) -> None:
    run = terminal.start("run", "my_agent.py")
    gateway = run.wait_for(r"ws://localhost:\d+")
    base = run.wait_for(r"http://localhost:\d+")
    run.wait_for("is running")
    assert ask(gateway, "hello") == "You said: hello"
    assert get(f"{base}/api/v1/services/my_agent")["status"] == "running"
    assert run.interrupt() == 0
    assert terminal.processes() == []
    # And once more, on what the first run has left.
    again = terminal.start("run", "my_agent.py")
    again.wait_for("is running")
    assert "already" in terminal.refused("run", "my_agent.py")
    assert again.interrupt() == 0


def test_the_database_is_named_before_or_after_the_command_or_in_the_environment(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.run("--db-path", "one.db", "register", "one", "my_agent.py")
    terminal.run("register", "two", "my_agent.py", "--db-path", "two.db")
    assert [s["name"] for s in terminal.json("list", "--db-path", "one.db")] == ["one"]
    assert [s["name"] for s in terminal.json("--db-path", "two.db", "list")] == ["two"]
    assert not Path(tmp_path, "agent_manager.db").exists()


def test_wrong_usage_is_exit_code_2_and_bad_requests_one_line_and_1(terminal: Terminal) -> None:
    terminal.run("nonsense", code=2)
    terminal.run("register", code=2)
    terminal.run("register", "echo", "my_agent.py")
    (terminal.directory / "text.db").write_text("not a database" * 100)
    refusals = {
        ("start", "nobody"): "nobody",
        ("status", "nobody"): "nobody",
        ("register", "echo", "my_agent.py"): "registered already",
        ("register", "bad name", "my_agent.py"): "name",
        ("register", "x", "nowhere.py"): "does not exist",
        ("register", "x", "."): "directory",
        ("register", "x", "my_agent.py", "--db-path", "/nowhere/x.db"): "does not exist",
        ("list", "--db-path", "text.db"): "text.db",
    }
    for words, said in refusals.items():
        line = terminal.refused(*words)
        assert re.search(said, line), f"{words}: {line}"
    assert (terminal.directory / "text.db").read_text() == "not a database" * 100
    assert [s["name"] for s in terminal.json("list")] == ["echo"]


def test_an_agent_that_cannot_be_loaded_is_an_error_with_its_own_last_words(terminal: Terminal) -> None:
    (terminal.directory / "bad.py").write_text("def create_agent(:\n")
    failed = terminal.run("register", "bad", "bad.py", "--auto-start", code=1)
    assert "SyntaxError" in failed.stderr
    status = terminal.json("status", "bad")
    assert status["status"] == "error"
    assert "bad.py" in status["error_message"]
    terminal.run("shutdown")
    assert terminal.processes() == []
