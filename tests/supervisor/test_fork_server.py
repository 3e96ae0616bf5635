"""The fork server under faults: killed at each step of a start, suspended, without room for a process.

The rule in all of them: a start is over within a bounded time, by a fork or a spawn; an instance that runs is
not touched; and neither a process nor a descriptor is left.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys

import pytest
import trio

from agentmgr.errors import AgentManagerError
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.supervisor import Supervisor, fork_server, forking, procfs
from agentmgr.supervisor.forking import Origin
from tests.conditions import until
from tests.faults.managers import ManagerProcess, instances_of, settled
from tests.faults.many_forks import fork_many
from tests.faults.many_forks import fork_server as running
from tests.processes import alive

AGENT = """
def create_agent():
    async def answer(message):
        return "echo: " + message
    return answer
"""


@pytest.fixture
def agent(tmp_path):
    def make(name="svc", source=AGENT, **config):
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        config = {"restart_delay": 0.0, "sessions": "memory", **config}
        config = ServiceConfig(agent_factory_path=str(file), **config)
        return ServiceSpec(name, config, desired_status=DesiredStatus.RUNNING)

    return make


@pytest.fixture
def interpreter(tmp_path):
    """An interpreter whose fork server runs `code` once all is imported; `m` is its `__main__`."""

    def make(code, *, execs=True):
        file = tmp_path / "python"
        run = f"import sys; del sys.argv[1:3]\nfrom agentmgr.fork_server import __main__ as m\n{code}\n"
        run += "sys.exit(m.main())"
        file.write_text(f"#!/bin/sh\n{'exec ' if execs else ''}{sys.executable} -c '{run}' \"$@\"\n")
        file.chmod(0o755)
        return str(file)

    return make


def spec_and_files(directory):
    """What a child that runs no agent is to become: it says so on its stdout, and ends with exit code 78."""
    argv = [sys.executable, "-P", "bootstrap.py", "agentmgr.agent", str(directory / "none.py")]
    output = os.open(directory / "output", os.O_WRONLY | os.O_CREAT)
    return {"argv": argv, "environment": {}, "cwd": None}, [os.open(".", os.O_PATH), output]


@pytest.fixture
def children():
    """The states of the children of this process that the test has, by pid."""

    def find():
        stats = filter(None, map(procfs.stat, procfs.pids()))
        return {stat.pid: stat.state for stat in stats if stat.parent == os.getpid()}

    before = find()
    return lambda: {pid: state for pid, state in find().items() if pid not in before}


def command(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().split("\0")


def the_server(s: Supervisor) -> int:
    (state,) = s.fork_servers()
    assert state.pid is not None
    return state.pid


async def test_killed_before_it_forks(supervisor, agent):
    async with supervisor() as s:
        await s.start(agent("first"))
        pid = the_server(s)
        os.kill(pid, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(s.start, second := agent("second"))
            await until(lambda: len(os.listdir(f"/proc/{pid}/fd")) and s.instances(second.service_id))
            os.kill(pid, signal.SIGKILL)
        assert the_server(s) != pid
        assert [view.restart_count for view in s.instances()] == [0, 0]


async def test_killed_when_it_has_forked(tmp_path):
    """The child is not its child: it goes on, becomes what it is to be, and its exit code is known."""
    async with running() as server:
        fork = await server.fork()
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: not alive(server.pid))
        spec, files = spec_and_files(tmp_path)
        await fork.begin(spec, files)
        with trio.fail_after(60):
            _, status = await trio.to_thread.run_sync(os.waitpid, fork.pid, 0)
        assert os.waitstatus_to_exitcode(status) == os.EX_CONFIG
        assert "Agent factory file not found" in (tmp_path / "output").read_text()
        for each in files:
            os.close(each)
    assert "SIGKILL" in server.problem


async def test_killed_when_its_instance_is_ready(supervisor, recorder, agent):
    async with supervisor() as s:
        await s.start(agent())
        server, before = the_server(s), s.instances()[0].pid
        os.kill(server, signal.SIGKILL)
        await until(lambda: not os.path.exists(f"/proc/{server}"))
        assert (s.instances()[0].pid, s.instances()[0].status) == (before, ServiceStatus.RUNNING)
        assert procfs.stat(before).parent == os.getpid()
        os.kill(before, signal.SIGKILL)
        await recorder.until(lambda: s.instances()[0].last_exit == "SIGKILL")
        await recorder.until(lambda: s.instances()[0].status is ServiceStatus.RUNNING)
        assert the_server(s) != server


async def test_killed_while_twenty_start(supervisor, agent, descriptors, children):
    async with supervisor() as s:
        await s.start(agent("first"))
        base = descriptors()
        killed = [the_server(s)]
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(s.start, agent(f"svc-{number}"))
            await until(lambda: sum(view.status is ServiceStatus.RUNNING for view in s.instances()) > 3)
            os.kill(killed[0], signal.SIGKILL)
        assert {view.status for view in s.instances()} == {ServiceStatus.RUNNING}
        assert {view.restart_count for view in s.instances()} == {0}
        assert the_server(s) != killed[0]
        assert "Z" not in children().values()
        for view in s.instances()[1:]:
            await s.stop(view.service_id)
        await until(lambda: descriptors() <= base + 2)  # the pidfd and the socket of the new server
    assert children() == {}


async def test_suspended_it_holds_up_a_start_for_a_bounded_time(supervisor, agent, monkeypatch, caplog):
    monkeypatch.setattr(fork_server, "_FORKING_S", 0.2)
    async with supervisor() as s:
        await s.start(agent("first"))
        pid = the_server(s)
        os.kill(pid, signal.SIGSTOP)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(s.start, agent(f"svc-{number}"))
        (state,) = s.fork_servers()
        assert (state.pid, state.problem) == (None, "it did not fork within 0.2 s")
        assert {view.status for view in s.instances()} == {ServiceStatus.RUNNING}
        assert {view.restart_count for view in s.instances()} == {0}
        await until(lambda: not os.path.exists(f"/proc/{pid}"))
        assert caplog.text.count("it did not fork within 0.2 s") == 1


async def test_without_room_for_a_process_a_start_is_tried_again(supervisor, recorder, agent, interpreter):
    python = interpreter("""
fork, failures = m.SiblingFork.__call__, iter(range(2))
def short_of_processes(self):
    if next(failures, None) is not None:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork(self)
m.SiblingFork.__call__ = short_of_processes
""")
    async with supervisor() as s:
        await s.start(agent(python=python, max_restart_count=0))
        (view,) = s.instances()
        assert (view.status, view.restart_count) == (ServiceStatus.RUNNING, 2)
        assert any("no room for another process" in (each.error_message or "") for each in recorder.history)


async def test_descriptors_that_do_not_all_arrive_are_a_shortage(tmp_path, descriptors):
    async with running() as server:
        fork = await server.fork()
        base = descriptors()
        spec, files = spec_and_files(tmp_path)
        resource.prlimit(fork.pid, resource.RLIMIT_NOFILE, (5, 5))
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await fork.begin(spec, [*files, *files])
        await trio.to_thread.run_sync(os.waitpid, fork.pid, 0)
        for each in files:
            os.close(each)
        assert descriptors() == base - 1  # the socket of the start


async def test_a_directory_that_is_gone_is_said_as_with_a_spawn(supervisor, agent, tmp_path, children):
    async with supervisor() as s:
        spec = agent(cwd=str(tmp_path / "none"))
        with pytest.raises(Exception, match=r"cannot work in directory .*none.*No such file"):
            await s.start(spec)
        assert s.instances()[0].status is ServiceStatus.ERROR
        assert the_server(s)
        assert "Z" not in children().values()


@pytest.mark.parametrize(
    ("code", "execs", "problem"),
    [
        ("raise SystemExit(3)", True, "it has ended with exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", True, "it has ended by SIGKILL"),
        ("m.handover.VERSION = 0", True, "it has another version of agentmgr"),
        ("pass", False, "is no child of the manager"),
        ("import time; time.sleep(600)", True, "it was not ready within 0.5 s"),
    ],
)
async def test_a_fork_server_that_does_not_become_ready(
    interpreter, monkeypatch, children, code, execs, problem
):
    monkeypatch.setattr(fork_server, "_IMPORTING_S", 0.5 if "sleep" in code else 60)
    with trio.fail_after(60):
        async with running(interpreter(code, execs=execs)) as server:
            assert await server.fork() is None
            assert problem in server.problem
            assert server.pause_s > 0
    assert children() == {}


async def test_many_forks_leave_nothing():
    """`python -m tests.faults --forks 10000` does it at length."""
    async with running() as server:
        await fork_many(server, 300)


@pytest.mark.parametrize(
    ("name", "shared"), [("API_KEY", True), ("PORT", True), ("PYTHONHASHSEED", False), ("LC_ALL", False),
    ("LD_PRELOAD", False), ("HOME", False), ("HOMEPAGE", True), ("AGENTMGR_PYTHONPATH", False)]
)  # fmt: skip
def test_which_variables_need_a_fork_server_of_their_own(name, shared):
    plain, with_it = ({"PATH": "/bin", "LANG": "C", **more} for more in ({}, {name: "1"}))
    assert (Origin.of(None, plain, None, None) == Origin.of(None, with_it, None, None)) is shared


async def test_two_supervisors_have_two_fork_servers(supervisor, agent, tmp_path):
    async with supervisor() as s:
        await s.start(agent("mine"))
        async with Supervisor(log_dir=tmp_path / "other") as other:
            await other.start(agent("theirs"))
            theirs = the_server(other)
            assert theirs != the_server(s)
        assert not alive(theirs)
        assert alive(the_server(s))


VANDAL = (
    """
import gc, locale, logging, os, random, signal, sys, threading, time, warnings
os.chdir("/"); os.umask(0o777); os.environ["VANDAL"] = "1"; os.environ["TZ"] = "Asia/Tokyo"; time.tzset()
locale.setlocale(locale.LC_ALL, "C"); sys.path.insert(0, "/vandal"); warnings.simplefilter("error")
signal.signal(signal.SIGUSR1, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
gc.disable(); sys.setrecursionlimit(333); random.seed(1); logging.disable(); sys.modules["vandal"] = sys
"""
    + AGENT
)
WITNESS = (
    """
import gc, json, locale, logging, os, random, signal, sys, time, warnings
print("seen:", json.dumps([
    os.getcwd(), os.umask(0o22), sorted(os.environ), time.tzname, locale.setlocale(locale.LC_ALL), sys.path,
    str(warnings.filters), str(signal.getsignal(signal.SIGUSR1)), sorted(signal.pthread_sigmask(0, [])),
    gc.isenabled(), sys.getrecursionlimit(), logging.root.manager.disable, "vandal" in sys.modules,
]))
"""
    + AGENT
)


async def test_what_one_agent_does_to_its_process_is_not_in_the_next(supervisor, agent):
    async with supervisor() as s:
        seen = []
        await s.start(witness := agent("witness", WITNESS))
        log = s.log_path("witness")
        await s.start(agent("vandal", VANDAL))
        await s.stop(witness.service_id)
        await s.start(witness)
        seen = [line for line in log.read_text().splitlines() if line.startswith("seen:")]
        assert len(seen) == 2
        assert seen[0] == seen[1]
        assert s.fork_servers()[0].forks == 3


async def test_an_upgrade_replaces_it(supervisor, agent, monkeypatch):
    async with supervisor() as s:
        await s.start(agent("first"))
        pid, before = the_server(s), fork_server._stamp
        await s.start(agent("second"))
        assert the_server(s) == pid
        monkeypatch.setattr(fork_server, "_stamp", lambda path: (before(path), "newer"))
        await s.start(agent("third"))
        assert the_server(s) != pid
        await until(lambda: not os.path.exists(f"/proc/{pid}"))
        assert {view.status for view in s.instances()} == {ServiceStatus.RUNNING}


async def test_it_ends_with_a_killed_manager_and_its_instances_are_adopted(tmp_path):
    database, file = tmp_path / "a.db", tmp_path / "agent.py"
    file.write_text(AGENT)
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        await manager.ask("register", name="svc", file=str(file), wait=True)
        (instance,) = instances_of(database)["svc"]
        stats = filter(None, map(procfs.stat, procfs.pids()))
        parent = procfs.stat(instance).parent
        (server,) = [
            stat.pid
            for stat in stats
            if stat.parent == parent and "agentmgr.fork_server" in command(stat.pid)
        ]
        manager.kill()
        await until(lambda: not alive(server))
    assert alive(instance)
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        await settled(manager, database)
        assert instances_of(database) == {"svc": [instance]}
        await manager.ask("unregister", name="svc")
        assert instances_of(database) == {}


async def test_few_servers_and_few_problems_are_kept_and_one_that_made_room_is_no_problem(
    supervisor, agent, monkeypatch
):
    monkeypatch.setattr(forking, "_MOST", 1)
    async with supervisor() as s:
        for number in range(3):
            await s.start(agent(f"good{number}", env={"LC_NUMBER": str(number)}))
        assert [(it.problem, it.forks) for it in s.fork_servers()] == [(None, 1)]

        for number in range(3):
            bad = agent(f"bad{number}", env={"PYTHONHOME": f"/nonexistent{number}"}, restart="never")
            with pytest.raises(AgentManagerError):
                await s.start(bad)
        problems = [it.problem for it in s.fork_servers() if it.problem is not None]
        assert len(problems) == 2, "the last one, and one of those before"


SPILLING = """
import os, sqlite3
database = sqlite3.connect("")
database.execute("PRAGMA cache_size = 10")
database.execute("CREATE TABLE t AS SELECT zeroblob(1000000)")
links = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
with open("spilled", "w") as file:
    file.write(" ".join(os.readlink(link) for link in links if os.path.lexists(link)))
"""


async def test_temporary_files_of_sqlite_go_where_the_agents_environment_says(supervisor, agent, tmp_path):
    (temporary := tmp_path / "temporary").mkdir()
    async with supervisor() as s:
        await s.start(agent("other"))
        config = {"env": {"TMPDIR": str(temporary)}, "cwd": str(tmp_path)}
        await s.start(agent("spilling", AGENT + SPILLING, **config))
        assert sum(it.forks for it in s.fork_servers()) == 2
    assert f"{temporary}/" in (tmp_path / "spilled").read_text()
