"""The manager's own end, and what the next one finds."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from random import Random

import pytest
import trio

from agentmgr.supervisor import procfs
from tests.faults.managers import (
    COMMAND,
    ManagerDied,
    ManagerProcess,
    end_all,
    instances_of,
    kill_managers,
    settled,
)
from tests.faults.test_stubborn_processes import eventually


@pytest.fixture
def database(tmp_path):
    yield tmp_path / "manager.db"
    end_all(tmp_path / "manager.db")


async def test_kill_9_of_the_manager_at_random_points(database, seed):
    await kill_managers(database, 4, Random(seed))


async def test_kill_9_between_spawn_and_commit_leaves_no_duplicate(database):
    async with ManagerProcess.running(database, "--die-when-spawned") as manager:
        await manager.ready()
        with pytest.raises(ManagerDied):
            await manager.ask("register", name="svc", command=COMMAND, wait=True)
    ((orphan,),) = instances_of(database).values()
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        services = await settled(manager, database)
        assert services["svc"]["instances"][0][1] != orphan


async def test_an_adopted_instance_is_supervised_on(database):
    """How the child of an earlier manager ended is not known, or known rightly; it is never 0."""
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        await manager.ask("register", name="svc", command=COMMAND, wait=True)
        before = (await settled(manager, database))["svc"]["instances"][0]
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        assert (await settled(manager, database))["svc"]["instances"][0][:3] == before[:3]
        os.kill(before[1], signal.SIGKILL)
        await eventually(lambda: instances_of(database).get("svc", [before[1]]) != [before[1]])
        after = (await settled(manager, database))["svc"]["instances"][0]
        # Linux 6.15 and newer say it, once init has reaped the process.
        assert after[2:] in ([before[2], "unknown"], [before[2], "SIGKILL"])


@pytest.mark.parametrize("kind", ["agent file", "command"])
async def test_an_instance_that_is_to_die_with_the_manager_does(database, tmp_path, kind):
    (tmp_path / "agent.py").write_text("def create_agent():\n    return lambda message: message\n")
    # A command ends with what it has started, in its session or not, and though it is deaf to TERM.
    command = [*COMMAND, "--worker", "--escapee", "--ignore-term"]
    what = {"file": str(tmp_path / "agent.py")} if kind == "agent file" else {"command": command}
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        for name, end in (("dies", "die"), ("stays", "keep")):
            await manager.ask(
                "register", name=name, on_manager_death=end, stop_timeout=0.5, wait=True, **what
            )
        assert instances_of(database).keys() == {"dies", "stays"}
        staying = instances_of(database)["stays"]
        manager.kill()
    await eventually(lambda: instances_of(database).keys() == {"stays"})
    assert instances_of(database)["stays"] == staying


def children_of(manager):
    me = manager._process.pid
    stats = {pid: procfs.stat(pid) for pid in procfs.pids()}
    return {pid for pid, stat in stats.items() if stat is not None and stat.parent == me and stat.lives}


async def test_the_guard_of_those_that_are_to_die_is_replaced_when_it_is_killed(database):
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        for name in ("one", "two"):
            # Slow to be ready: by then a guard that is started twice is there twice.
            command = [*COMMAND, "--ready-after", "0.5"]
            await manager.ask("register", name=name, command=command, on_manager_death="die", wait=True)
            (guard,) = children_of(manager) - {
                pid for pids in instances_of(database).values() for pid in pids
            }
            os.kill(guard, signal.SIGKILL)
            await eventually(lambda: guard not in children_of(manager))  # noqa: B023
        await eventually(lambda: len(children_of(manager)) == 3)
        manager.kill()
    await eventually(lambda: instances_of(database) == {})


@contextmanager
def daemon(database):
    words = [sys.executable, "-m", "agentmgr", "--db-path", str(database), "daemon"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_second_manager_refuses_and_names_the_first(database):
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        with daemon(database) as second:
            output, _ = await trio.to_thread.run_sync(partial(second.communicate, timeout=20))
        assert second.returncode > 0
        assert f"the process {manager._process.pid} manages" in output


@pytest.mark.parametrize(
    "signals", [["SIGTERM", "SIGTERM", "SIGINT", "SIGHUP"], ["SIGINT", "SIGHUP", "SIGTERM"]]
)
async def test_signals_during_the_clean_up_do_not_stop_it(database, signals):
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        for i in range(3):
            command = [*COMMAND, "--term-takes", "0.7"]
            await manager.ask("register", name=f"svc{i}", command=command, wait=True)
        manager.kill()
    with daemon(database) as process:
        for line in iter(process.stdout.readline, ""):
            if "ready" in line.lower() or "manag" in line.lower():
                break
        for name in signals:
            process.send_signal(getattr(signal, name))
            await trio.sleep(0.1)
        assert await trio.to_thread.run_sync(process.wait, 30) == 0, process.stdout.read()
    assert instances_of(database) == {}


async def test_a_third_signal_kills_what_does_not_end(database):
    async with ManagerProcess.running(database) as manager:
        await manager.ready()
        command = [*COMMAND, "--ignore-term", "--worker", "--escapee"]
        await manager.ask("register", name="svc", command=command, stop_timeout=600, wait=True)
        manager.kill()
    with daemon(database) as process:
        for wanted in ("managing", "a second Ctrl-C", "a third Ctrl-C"):
            while wanted not in (line := process.stdout.readline()):
                assert line
            process.send_signal(signal.SIGTERM)
        await trio.to_thread.run_sync(partial(process.communicate, timeout=60))
        assert process.returncode == 0
    assert instances_of(database) == {}
