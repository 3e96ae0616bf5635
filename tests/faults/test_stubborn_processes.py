"""Processes that do not want to end, or that leave others behind."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import trio
import trio.testing
from attrs import evolve

from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec
from agentmgr.supervisor import procfs
from agentmgr.supervisor.limits import Limits
from tests.ports import own_port
from tests.processes import alive
from tests.supervisor.conftest import CHILD


def script(code, *options, **config):
    """A service that runs some Python beside serving."""
    config = {"stop_timeout": 1, "restart_delay": 0.05, **config}
    argv = ["child.py", "--port", "{port}", *options]
    serve = f"import runpy, sys\nsys.argv = {argv!r}\nrunpy.run_path({str(CHILD)!r}, run_name='__main__')"
    words = (sys.executable, "-c", f"{textwrap.dedent(code)}\n{serve}")
    return ServiceSpec("svc", ServiceConfig(command=words, **config), desired_status=DesiredStatus.RUNNING)


@pytest.mark.parametrize("stopped", [False, True])
async def test_one_that_ignores_term_or_is_suspended_is_gone_at_the_deadline(
    supervisor, command, descendants, stopped
):
    """With what it has started, which is as deaf, in its group and out of it."""
    async with supervisor() as s:
        spec = command("--ignore-term", "--worker", "--escapee", stop_timeout=0.5)
        await s.start(spec)
        assert len(descendants()) == 3
        if stopped:
            for pid in descendants():
                os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(60):
            await s.stop(spec.service_id)
        assert descendants() == []


async def test_a_daemon_of_a_grandchild_is_gone_after_a_stop_and_the_port_is_free(supervisor, descendants):
    # Twice forked, a session of its own, deaf to TERM, and it has the listening socket open.
    code = """
        import os, signal, socket, time
        create_server = socket.create_server

        def and_a_daemon(*args, **options):
            listener = create_server(*args, **options)
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    time.sleep(600)
                os._exit(0)
            os.wait()
            return listener

        socket.create_server = and_a_daemon
    """
    port = own_port()
    async with supervisor() as s:
        spec = evolve(script(code), port=port)
        await s.start(spec)
        assert len(descendants()) == 2
        await s.stop(spec.service_id)
        assert descendants() == []
        with socket.create_server(("127.0.0.1", port)):
            pass


async def test_a_process_whose_first_thread_has_ended_lives_and_is_gone_after_a_stop(supervisor, tmp_path):
    code = f"""
        import ctypes, os, signal, threading, time
        if not (pid := os.fork()):
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            threading.Thread(target=time.sleep, args=(600,)).start()
            ctypes.CDLL(None).pthread_exit(None)
        while open("/proc/%d/stat" % pid).read().split()[2] != "Z":
            time.sleep(0.01)
        open({str(tmp_path / "pid")!r}, "w").write(str(pid))
    """
    async with supervisor() as s:
        spec = script(code)
        await s.start(spec)
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)
        await s.stop(spec.service_id)
        assert not alive(pid)


async def test_a_grandchild_that_keeps_stdout_open_does_not_delay_the_notice_of_the_exit(
    supervisor, descendants
):
    code = "import subprocess; subprocess.Popen(['setsid', 'sh', '-c', \"trap '' TERM; sleep 600\"])"
    async with supervisor() as s:
        await s.start(script(code, "--exit-code", "4", restart_delay=60))
        assert len(descendants()) >= 2
        leader = os.pidfd_open(s.instances()[0].pid)
        try:
            os.kill(s.instances()[0].pid, signal.SIGUSR1)
            with trio.fail_after(20):
                await trio.lowlevel.wait_readable(leader)
        finally:
            os.close(leader)
        await trio.testing.wait_all_tasks_blocked()  # what woke us has woken all who wait for its exit
        assert [(view.status, view.last_exit) for view in s.instances()] == [("backoff", "exit code 4")]


def can_limit_processes():
    limits = Limits(ServiceConfig(command=("x",), max_processes=10), "ins_probe")
    with subprocess.Popen(["sleep", "60"]) as process:
        unenforced = limits.impose(process.pid)
        process.kill()
    limits.lift()
    return not unenforced


async def test_a_fork_bomb_is_contained_and_the_others_stay_routable(
    supervisor, recorder, command, descendants, monkeypatch, tmp_path
):
    if not can_limit_processes():
        pytest.skip(
            "no control group for processes can be made here, and we do not let off a bomb without one"
        )
    bomb = """
        import os, time
        if os.fork() == 0:
            while not os.path.exists("lit"):
                time.sleep(0.05)
            for _ in range(12):  # 2^12 would-be processes, each in a session of its own
                try:
                    if os.fork() == 0:
                        os.setsid()
                except OSError:
                    time.sleep(0.01)
            time.sleep(600)
    """
    impose = Limits.impose

    def slowly(*args):  # as on a busy machine: nothing may run before it
        time.sleep(0.3)
        return impose(*args)

    monkeypatch.setattr(Limits, "impose", slowly)
    async with supervisor(health_check_interval=0.2) as s:
        neighbour = command(name="neighbour")
        await s.start(neighbour)
        spec = script(bomb, max_processes=30, cwd=str(tmp_path))
        await s.start(spec)
        assert s.instances(spec.service_id)[0].unenforced == ()
        (tmp_path / "lit").touch()
        await eventually(lambda: len(descendants()) >= 25)
        assert len(descendants()) <= 31
        (check,) = await s.check(neighbour.service_id)
        assert check.ok
        await s.stop(spec.service_id)
        assert descendants() == [s.instances()[0].pid]


async def test_a_thousand_dead_grandchildren_leave_no_zombies(supervisor, descendants):
    code = """
        import os, signal
        ready, told = os.pipe()
        if os.fork() == 0:
            for _ in range(1000):
                if os.fork() == 0:
                    os._exit(0)
            os.write(told, b".")
            signal.pause()
        os.read(ready, 1)
    """
    before = zombies_of(os.getpid())  # of tests that killed what a supervisor of theirs had left running
    async with supervisor() as s:
        spec = script(code)
        await s.start(spec)
        parent = next(pid for pid in descendants() if len(zombies_of(pid)) == 1000)
        assert parent != s.instances()[0].pid
        await s.stop(spec.service_id)
        assert zombies_of(parent) == set()  # theirs was init's
        assert zombies_of(os.getpid()) == before


async def eventually(condition):
    """For what no recorder tells of: processes that are none of ours."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.05)


def zombies_of(parent):
    stats = {pid: procfs.stat(pid) for pid in procfs.pids()}
    return {pid for pid, stat in stats.items() if stat and stat.state == "Z" and stat.parent == parent}


def test_as_process_1_of_a_container_orphans_are_reaped(tmp_path):
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a process namespace")
    manager = textwrap.dedent(
        f"""
        import os, pathlib, sys, trio
        from agentmgr.models import ServiceConfig, ServiceSpec
        from agentmgr.supervisor import Supervisor, procfs, upkeep
        upkeep._USAGE_EVERY_S = 0.2
        upkeep._LOGS_EVERY_S = 0.1, 0.1

        class Recorder:
            async def instance_spawned(self, record): pass
            async def instance_gone(self, instance_id): pass
            def instance_changed(self, instance): pass
            def health_checked(self, check): pass
            async def drain(self, instance_id, timeout_s, *, for_good): pass

        async def main():
            assert os.getpid() == 1
            supervisor = Supervisor(Recorder(), log_dir=pathlib.Path({str(tmp_path)!r}))
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run)
                # Each daemon loses its parent to us, and then dies.
                daemon = "import os, time; os.setsid(); os.fork() and os._exit(0); time.sleep(0.2)"
                daemons = f"import os; [os.fork() or exec({{daemon!r}}) or os._exit(0) for _ in range(5)];"
                serve = "import runpy, sys; sys.argv = ['child.py', '--port', '{{port}}'];"
                serve += "runpy.run_path({str(CHILD)!r}, run_name='__main__')"
                words = (sys.executable, "-c", daemons + serve)
                spec = ServiceSpec("svc", ServiceConfig(command=words))
                await supervisor.start(spec)
                await supervisor.stop(spec.service_id)
                with trio.fail_after(20):
                    while any((s := procfs.stat(p)) and s.state == "Z" for p in procfs.pids()):
                        await trio.sleep(0.05)
                print("no zombies")
                await supervisor.shutdown()

        trio.run(main)
        """
    )
    done = subprocess.run(
        [*unshare, sys.executable, "-c", manager], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "no zombies\n", done.stderr
