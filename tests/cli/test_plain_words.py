"""What the commands say is so, and says what to do."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

import pytest

from agentmgr.cli.commands.list import _row
from agentmgr.cli.commands.stats import _flat
from agentmgr.cli.commands.status import _percentiles
from agentmgr.cli.managers import _last_line
from agentmgr.cli.render import what_helps
from agentmgr.core.view import service_view
from agentmgr.models import (
    DesiredStatus,
    Instance,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
    Usage,
    utc_now,
)


def test_a_manager_that_cannot_be_reached_is_not_said_to_be_absent(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    pid = shell.manager_pid()
    shell.paths.control_socket.unlink()
    shell.paths.control_socket.mkdir()  # in the way of another one
    for words in (["shutdown"], ["list"]):
        said = shell.fails(*words)
        assert f"the process {pid} manages" in said
        assert f"kill {pid}" in said


def test_shutdown_names_what_a_killed_manager_left(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    shell.kill_manager()
    assert "agentmgr stop echo" in shell.fails("shutdown")
    shell.ok("stop", "echo")
    shell.ok("shutdown")


def test_only_what_the_daemon_said_now_explains_its_end(tmp_path: Any) -> None:
    log = tmp_path / "daemon.log"
    log.write_text("an earlier end\n")
    assert _last_line(log, log.stat().st_size) == "it wrote nothing"
    assert _last_line(log, 0) == "an earlier end"


def test_each_name_has_its_turn(shell: Any) -> None:
    shell.ok("register", "a", "my_agent.py")
    shell.ok("register", "b", "my_agent.py")
    done = shell("unregister", "a", "nosuch", "b")
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["unregistered a", "unregistered b"]
    assert done.stderr.startswith("Error: no service is called 'nosuch'")


def test_a_start_that_is_not_waited_for_is_starting(shell: Any, write: Any) -> None:
    write("slow.py", "import time\ntime.sleep(1)\nasync def agent(message):\n    return message\n")
    shell.ok("register", "slow", "slow.py")
    assert shell.ok("start", "slow", "--no-wait") == "slow is starting\n"


def test_a_stop_that_is_not_waited_for_is_stopping(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    assert shell.ok("stop", "echo", "--no-wait") == "echo is stopping\n"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("stopped", "x is stopped; `agentmgr start x` starts it"),
        ("starting", "x is starting; `agentmgr status x` says how far it is"),
        ("unhealthy", "x is running and fails its health checks; `agentmgr logs x` may say why"),
        ("backoff", "x has failed and will be started again; `agentmgr logs x` shows its last words"),
        ("draining", "x is stopping as its sessions end; `agentmgr start x` starts it again"),
        ("stopping", "x is stopping; `agentmgr start x` starts it again"),
        (
            "error",
            "x has failed and was given up; `agentmgr logs x` shows its last words, "
            "`agentmgr start x` tries again",
        ),
    ],
)
def test_whoever_cannot_talk_to_a_service_is_told_how_it_stands_and_what_helps(
    status: str, said: str
) -> None:
    spec = ServiceSpec("x", ServiceConfig("agent.py"), desired_status=DesiredStatus.RUNNING)
    instance = Instance("ins_1", spec.service_id, 0, ServiceStatus(status))
    assert what_helps(service_view(spec, [instance], 0)) == said


def test_a_registration_whose_start_fails_says_that_it_stands(shell: Any, write: Any) -> None:
    write("broken.py", "1 / 0\n")
    done = shell("register", "broken", "broken.py", "--auto-start")
    assert done.returncode == 1
    assert done.stderr.endswith("broken is registered: fix it, then `agentmgr start broken`\n")


def test_what_waits_for_others_says_what_lets_it_begin(shell: Any) -> None:
    for name in ("needed", "other"):
        shell.ok("register", name, "my_agent.py")
    after = ("--after", "needed", "--after", "other")
    shell.ok("register", "second", "my_agent.py", *after)
    helps = "waits for needed and other; `agentmgr start needed other` lets it begin\n"
    said = shell.fails("register", "first", "my_agent.py", *after, "--auto-start")
    assert said.endswith(f"first is registered, and {helps}")
    assert shell.fails("start", "second") == f"Error: second {helps}"
    shell.ok("start", "needed")
    helps = "waits for other; `agentmgr start other` lets it begin\n"
    assert shell.fails("register", "third", "my_agent.py", *after, "--auto-start").endswith(helps)


def test_a_list_adds_up_what_the_instances_use() -> None:
    spec = ServiceSpec("x", ServiceConfig("a.py", instances=3))
    usages = [Usage(utc_now(), percent, 2**20, 1, 1, 1) for percent in (0.2, 1500.0)]
    instances = [
        Instance(f"ins_{slot}", spec.service_id, slot, ServiceStatus.RUNNING, restart_count=1, usage=usage)
        for slot, usage in enumerate([*usages, None])
    ]
    assert _row(service_view(spec, instances, 0))[5:8] == [3, "1500.2 %", "2.0 MiB"]
    assert _row(service_view(spec, instances[2:], 0))[5:8] == [1, None, None], "nothing is known yet"


def test_routes_test_names_services(shell: Any) -> None:
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    assert "echo/0" in shell.ok("routes", "test")


def test_figures_keep_the_names_of_services_and_have_units() -> None:
    figures = {"connections": {"by_service": {"my_agent": 1}}, "uptime_s": 7200.0, "average_s": 0.25}
    assert _flat(figures) == [
        ("connections by service my_agent", 1),
        ("uptime", "2h 0m"),
        ("average", "0.25s"),
    ]


def test_response_times_are_told_once_there_are_any() -> None:
    assert _percentiles({"p50_s": 0.00123, "p95_s": 0.25}) == "p50 1.23 ms, p95 250 ms"
    assert _percentiles({"p50_s": None, "p95_s": None}) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["register", "x", "my_agent.py", "--", "foo"], "not both"),
        (["list", "--db-path", ""], "--db-path"),
    ],
)
def test_wrong_usage_is_named(here: Any, words: list[str], said: str) -> None:
    assert said in here.fails(*words, code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["register", "x", "--", ""], "command"),
        (["register", "x", "my_agent.py", "--env", "A=\0"], "NUL"),
        (["serve", "."], "is a directory"),
        (["status", "../x"], "../x"),
        (["daemon", "--db-path", "/proc/a.db"], "cannot be made"),
    ],
)
def test_what_cannot_be_is_named_in_one_line(here: Any, words: list[str], said: str) -> None:
    (line,) = here.fails(*words).splitlines()
    assert said in line


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_an_output_that_cannot_be_written_is_no_traceback(shell: Any, redirection: str) -> None:
    shell.ok("register", "a", "my_agent.py")
    done = subprocess.run(
        f"{sys.executable} -m agentmgr list {redirection}",
        shell=True, cwd=shell.directory, env=shell.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "AttributeError" not in done.stderr
    if "full" in redirection:
        assert (done.returncode, done.stderr) == (
            1,
            "Error: the output could not be written: No space left on device\n",
        )


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_streams_are_closed_does_what_it_should(shell: Any, closed: str) -> None:
    words = "register a my_agent.py --auto-start"  # the manager that it starts has none to inherit
    done = subprocess.run(
        f"{sys.executable} -m agentmgr {words} {closed}",
        shell=True, cwd=shell.directory, env=shell.environment,
    )  # fmt: skip
    assert done.returncode == 0
    assert "running" in shell.ok("list")


def test_a_worker_runs_and_whoever_wants_to_connect_is_told_that_it_serves_nothing(shell: Any) -> None:
    shell.ok("register", "worker", "--startup-timeout", "0.2", "--", "sleep", "600")
    assert shell.ok("start", "worker") == "worker is running\n"
    for _ in range(600):
        if "serves" in (said := shell.ok("status", "worker")):
            break
        time.sleep(0.05)
    assert re.search(r"serves +no connections: it does not listen on port \d+\n", said)
    assert "no instance listens on its port" in shell.fails("chat", "worker", "--once", "hi")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--health", "http:foo"], "Error: health must have a path that begins with '/'"),
        (
            ["--ready", "logs:started"],
            "Error: ready must be auto, websocket[:PATH], http[:PATH], tcp, notify, log:PATTERN or",
        ),
    ],
)
def test_a_check_that_there_is_not_is_refused_in_one_line(shell: Any, options: list[str], said: str) -> None:
    words = shell.fails("register", "x", *options, "--", "sleep", "600")
    assert words.startswith(said)
    assert words.count("\n") == 1
