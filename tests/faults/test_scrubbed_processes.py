"""Processes that have shed all but one of the marks that tell whose they are: their session goes first."""

import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from agentmgr.supervisor import procfs
from agentmgr.supervisor.cgroup import ControlGroup, hierarchies
from tests.faults.test_stubborn_processes import eventually, script
from tests.processes import alive

# Twice forked, a session of its own, deaf to TERM; sheds what it is told to.
DAEMON = """
    import os, sys, time
    while {in_group} and "/agentmgr-ins_" not in open("/proc/self/cgroup").read():
        time.sleep(0.01)  # as one that starts others when it serves already
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if {closes}:
                os.closerange(0, 100)
            code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            os.execve(sys.executable, [sys.executable, "-c", code, {mark!r}], {environ})
        os._exit(0)
    os.wait()
"""


@pytest.fixture
def daemons(tmp_path):
    """The pids of those that bear this test's mark; none outlives it."""

    def find():
        found = []
        for pid in procfs.pids():
            with suppress(OSError):
                stat = procfs.stat(pid)
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[-2:-1] == [str(tmp_path).encode()] and stat is not None and stat.lives:
                    found.append(pid)
        return found

    yield find
    for pid in find():
        os.kill(pid, signal.SIGKILL)


def has_groups():
    group = ControlGroup("agentmgr-probe")
    if (child := os.fork()) == 0:
        signal.pause()
    try:
        group.take_in(child)
        return group.has(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        group.remove()


def groups_of(instance):
    name = f"agentmgr-{instance.instance_id}"
    # `Path.glob` fails where a group of another test goes meanwhile.
    return [Path(place, name) for place, groups, _ in os.walk("/sys/fs/cgroup") if name in groups]


@pytest.fixture(params=["token", "lock", "control group"])
def daemon(request, tmp_path, monkeypatch):
    """A service with such a daemon, which is known by this alone."""
    in_group = request.param == "control group"
    if not in_group:
        monkeypatch.setattr(ControlGroup, "take_in", lambda *_: None)
    elif not has_groups():
        pytest.skip("no control group of version 2 can be made here")
    environ = "os.environ" if request.param == "token" else "{}"
    code = DAEMON.format(
        in_group=in_group, closes=request.param != "lock", environ=environ, mark=str(tmp_path)
    )
    return script(code, stop_timeout=0.3)


async def test_it_is_gone_after_a_stop(supervisor, daemons, daemon):
    async with supervisor() as s:
        await s.start(daemon)
        assert len(daemons()) == 1
        await s.stop(daemon.service_id)
        assert daemons() == []


async def test_it_is_gone_before_a_crashed_leader_is_started_again(supervisor, recorder, daemons, daemon):
    async with supervisor() as s:
        await s.start(daemon)
        (escaped,) = daemons()
        os.kill(s.instances()[0].pid, signal.SIGKILL)
        await recorder.until(lambda: recorder.statuses().count("running") == 2)
        assert escaped not in daemons()


async def test_the_next_manager_ends_it_when_its_leader_is_gone(supervisor, recorder, daemons, daemon):
    async with supervisor(leave_running=True) as s:
        await s.start(daemon)
        (instance,) = s.instances()
    (escaped,) = daemons()
    os.kill(instance.pid, signal.SIGKILL)
    await eventually(lambda: not alive(instance.pid))
    async with supervisor(adopt=[(daemon, list(recorder.records.values()))]):
        assert escaped not in daemons()


async def test_an_adopted_one_is_known_as_before(supervisor, recorder, daemons, daemon):
    async with supervisor(leave_running=True) as s:
        await s.start(daemon)
    assert len(daemons()) == 1
    async with supervisor(adopt=[(daemon, list(recorder.records.values()))]) as s:
        assert len(daemons()) == 1
        await s.stop(daemon.service_id)
        assert daemons() == []


async def test_nothing_is_left_of_groups_and_locks(supervisor, command, tmp_path):
    async with supervisor() as s:
        await s.start(spec := command("--worker"))
        (instance,) = s.instances()
        if has_groups():
            await eventually(lambda: groups_of(instance) != [])
        await s.stop(spec.service_id)
        assert list((tmp_path / "logs" / ".lifelines").iterdir()) == []
        assert groups_of(instance) == []


async def test_the_empty_groups_of_a_manager_that_never_came_back_are_removed(supervisor):
    if not has_groups():
        pytest.skip("no control group of version 2 can be made here")
    ((_, parent),) = [found for found in hierarchies() if not found[0]]
    groups = {name: parent / f"agentmgr-ins_{os.getpid()}_{name}" for name in ("old", "young", "busy")}
    with ExitStack() as stack:
        for group in (*groups.values(), groups["old"] / "within", groups["busy"] / "within"):
            group.mkdir()
            stack.callback(lambda group=group: group.is_dir() and group.rmdir())
        child = stack.enter_context(subprocess.Popen(["sleep", "600"]))
        stack.callback(child.kill)
        (groups["busy"] / "cgroup.procs").write_text(str(child.pid))
        for name in ("old", "busy"):
            os.utime(groups[name], (0, 0))
        async with supervisor():
            await eventually(lambda: not groups["old"].exists())
        assert groups["young"].is_dir()
        assert (groups["busy"] / "within").is_dir()
        child.kill()
        child.wait()
