"""Launches that fail: what cannot get better is an error at once, what can is waited out."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
import trio

from agentmgr.errors import ServiceFailedToStart
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec, ServiceStatus


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def create_agent(:", "SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def create_agent():\n    raise RuntimeError('no key')", "no key"),
        ("x = 1", "create_agent"),
        (None, "not found"),
    ],
)
async def test_an_agent_file_that_gives_no_agent_is_an_error_at_once(supervisor, tmp_path, source, reason):
    """With the real agent host."""
    file = tmp_path / "agent.py"
    if source is not None:
        file.write_text(source)
    async with supervisor() as s:
        spec = ServiceSpec("svc", ServiceConfig(agent_factory_path=str(file), restart="always"))
        with pytest.raises(ServiceFailedToStart, match=reason):
            await s.start(spec)
        (instance,) = s.instances()
        assert (instance.status, instance.restart_count) == (ServiceStatus.ERROR, 0)
        assert reason in instance.error_message
        assert instance.last_exit == "exit code 78"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
async def test_a_fork_that_fails_for_want_of_something_is_tried_again(
    supervisor, recorder, command, monkeypatch, number
):
    popen, failures = subprocess.Popen, iter(range(2))

    def short_of_everything(*args, **options):
        if next(failures, None) is not None:
            raise OSError(number, os.strerror(number))
        return popen(*args, **options)

    async with supervisor() as s:
        await s.start(command(name="neighbour"))
        monkeypatch.setattr(subprocess, "Popen", short_of_everything)
        spec = command(max_restart_count=0)
        await s.start(spec)
        assert [view.status for view in s.instances()] == [ServiceStatus.RUNNING] * 2
        assert s.instances(spec.service_id)[0].restart_count == 2
        assert any(os.strerror(number) in (view.error_message or "") for view in recorder.history)


async def test_without_descriptors_nothing_breaks_and_with_them_all_goes_on(supervisor, recorder, command):
    """A real EMFILE: the process may not open one more file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with supervisor(health_check_interval=0.1) as s:
        await s.start(neighbour := command(name="neighbour"))
        await s.start(victim := command(name="victim"))
        spec = command(max_restart_count=0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(ServiceFailedToStart, match="no room for another process"):
                await s.start(spec)
            assert s.instances(spec.service_id)[0].status is ServiceStatus.BACKOFF
            os.kill(s.instances(victim.service_id)[0].pid, signal.SIGKILL)
            await recorder.until(lambda: s.instances(victim.service_id)[0].status is ServiceStatus.BACKOFF)
            begin = len(recorder.checks)
            await recorder.until(lambda: sum(not check.ok for check in recorder.checks[begin:]) > 3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await recorder.until(lambda: [view.status for view in s.instances()] == [ServiceStatus.RUNNING] * 3)
        assert "unhealthy" not in recorder.statuses(s.instances(neighbour.service_id)[0].instance_id)
        assert s.instances(neighbour.service_id)[0].restart_count == 0


async def test_it_is_never_ready_against_a_stranger_on_its_port(supervisor, command, monkeypatch):
    """The stranger answers WebSocket handshakes as well as ours would."""
    from agentmgr.supervisor import addresses
    from tests.supervisor.conftest import CHILD

    port = addresses.Ports().lend("127.0.0.1", None)
    words = [sys.executable, "-S", str(CHILD), "--port", str(port)]
    with subprocess.Popen(words) as stranger:
        try:
            with trio.fail_after(20):
                while not listens(port):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            monkeypatch.setattr(addresses.Ports, "lend", lambda self, host, wanted: port)
            async with supervisor() as s:
                spec = command("--never-listen", startup_timeout=0.5, restart="never")
                with pytest.raises(ServiceFailedToStart, match=f"port {port} .* held by .*python"):
                    await s.start(spec)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_an_orphan_of_ours_on_the_port_is_swept_before_the_next_launch(supervisor, recorder):
    """The leader dies and leaves a daemon that holds the fixed port."""
    from agentmgr.supervisor.addresses import Ports
    from tests.faults.test_stubborn_processes import script

    port = Ports().lend("127.0.0.1", None)
    code = """
        import os, signal, socket, time
        create_server = socket.create_server

        def and_a_daemon(*args, **options):
            listener = create_server(*args, **options)
            if os.fork() == 0:
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
            return listener

        socket.create_server = and_a_daemon
    """
    plain = script(code)
    spec = ServiceSpec("svc", plain.config, port=port, desired_status=DesiredStatus.RUNNING)
    async with supervisor() as s:
        await s.start(spec)
        os.kill(s.instances()[0].pid, 9)
        await recorder.until(lambda: len(recorder.statuses()) == 5)
        (instance,) = s.instances()
        assert (instance.status, instance.port) == (ServiceStatus.RUNNING, port)


ENV_FILE = r"""# a comment

export KEY='a b'
URL=http://x/?a=1#frag
PLAIN=it's
BOTH=file
QUOTED="https://host/x" # the staging one
BARE=abc # rotate in May
ESCAPED="say \"hi\"\n"
RAW='C:\new $HOME'
PEM="-----BEGIN KEY-----
QUJD
-----END KEY-----"
EMPTY=
  SPACED = x
DERIVED="${BARE}/${OF_MANAGER}${NOT_SET}${NOT_SET:-default}"
PRICE=$5
"""


async def test_environment_files(supervisor, command, tmp_path, monkeypatch):
    env_file, report = tmp_path / "service.env", tmp_path / "report.json"
    env_file.write_text("\ufeff" + ENV_FILE)
    monkeypatch.setenv("OF_MANAGER", "manager")
    async with supervisor() as s:
        spec = command(
            "--report", str(report), env_file="service.env", cwd=str(tmp_path), env={"BOTH": "env"}
        )
        await s.start(spec)
        environ = json.loads(report.read_text())["environ"]
    wanted = {
        "KEY": "a b",
        "URL": "http://x/?a=1#frag",
        "PLAIN": "it's",
        "BOTH": "env",
        "QUOTED": "https://host/x",
        "BARE": "abc",
        "ESCAPED": 'say "hi"\n',
        "RAW": r"C:\new $HOME",
        "PEM": "-----BEGIN KEY-----\nQUJD\n-----END KEY-----",
        "EMPTY": "",
        "SPACED": "x",
        "DERIVED": "abc/managerdefault",
        "PRICE": "$5",
    }
    assert {name: environ.get(name) for name in wanted} == wanted
    assert "BARE" not in os.environ


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("KEY=a\nnot a line\n", "line 2: not of the form NAME=value"),
        ('KEY=a\r\n\r\n\r\nOPEN="no end\r\nNEXT=b\r\n', "line 4: not of the form NAME=value, with both"),
        ("A=1\nOPEN='no end\nNEXT='b'\n", "line 2: "),
        ('A="b" c\n', "line 1: "),
        ("A=1\n=b\n", "line 2: "),
        ("A=1\nALONE\n", "line 2: "),
        ("A=1\nB=\0\n", "line 2: a null character"),
    ],
)
async def test_what_an_environment_file_says_that_cannot_be_read_is_refused_with_its_line(
    supervisor, command, tmp_path, text, problem
):
    env_file = tmp_path / "service.env"
    env_file.write_bytes(text.encode())
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match=f"{env_file}, {problem}"):
            await s.start(command(env_file=str(env_file)))


async def test_an_environment_file_that_cannot_be_read_is_named(supervisor, command, tmp_path):
    env_file = tmp_path / "service.env"
    env_file.write_bytes("KEY=ä".encode("latin-1"))
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match=r"cannot read the environment file .*No such file"):
            await s.start(command(env_file="/no/such/file"))
        with pytest.raises(
            ServiceFailedToStart, match=f"cannot read the environment file {env_file}: .*utf-8"
        ):
            await s.start(command(name="other", env_file=str(env_file)))


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
async def test_an_environment_file_that_would_never_end_is_refused_and_holds_up_no_one(
    supervisor, command, tmp_path, kind
):
    env_file = kind
    if kind == "pipe":
        env_file = str(tmp_path / "service.env")
        os.mkfifo(env_file)
    async with supervisor() as s:
        with pytest.raises(ServiceFailedToStart, match=f"{env_file}: it is a pipe or a device"):
            await s.start(command(env_file=env_file))
        await s.start(command(name="other", env_file=os.devnull))


async def test_a_child_gets_no_key_of_the_operators(supervisor, command, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTMGR_TOKEN", "the operator's")
    report = tmp_path / "report.json"
    async with supervisor() as s:
        await s.start(command("--report", str(report)))
        assert "AGENTMGR_TOKEN" not in json.loads(report.read_text())["environ"]
        await s.start(command("--report", str(report), name="other", env={"AGENTMGR_TOKEN": "its own"}))
        assert json.loads(report.read_text())["environ"]["AGENTMGR_TOKEN"] == "its own"


async def test_without_another_thread_what_runs_is_ended_and_started_again_all_the_same(
    supervisor, recorder, command, hosted
):
    """A real shortage, as where something else has taken all processes that a container may have."""
    async with supervisor() as s, trio.open_nursery() as nursery:
        await s.start(victim := command(name="victim", restart_delay=0.1))
        await s.start(ended := hosted(name="ended"))
        enough, usual = threading.Event(), threading.stack_size(2**46)  # no room for such a stack

        async def occupy_a_thread(*, task_status):
            def wait():
                trio.from_thread.run_sync(task_status.started)
                enough.wait()

            await trio.to_thread.run_sync(wait, limiter=trio.CapacityLimiter(1))

        try:
            with suppress(RuntimeError):  # until none is left of those that wait for work
                while True:
                    await nursery.start(occupy_a_thread)
            first = s.instances(victim.service_id)[0].pid
            os.kill(first, signal.SIGKILL)
            await recorder.until(lambda: s.instances(victim.service_id)[0].pid not in (None, first))
            await s.stop(ended.service_id)
            await s.start(command(name="newcomer"))
        finally:
            threading.stack_size(usual)
            enough.set()
        assert [view.error_message for view in s.instances() if view.status is ServiceStatus.ERROR] == []
