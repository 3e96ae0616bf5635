"""Instances belong to the directory that they were started from; a copy of it, however made, touches none.

A record names a process by pid, start time, boot and token, and all of that is copied along with it.
"""

import os
import shutil
from contextlib import asynccontextmanager

import pytest
import trio

from agentmgr.errors import PortNotAvailable
from agentmgr.supervisor import Supervisor
from agentmgr.supervisor.belonging import claim, owner, strangers
from tests.faults.test_scrubbed_processes import daemon, daemons  # noqa: F401  (fixtures)


@asynccontextmanager
async def another(log_dir, *adopt):
    """A supervisor with its own directory, which ends what it started."""
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(log_dir=log_dir)

        async def run(task_status):
            await supervisor.run(adopt=adopt, task_status=task_status)

        await nursery.start(run)
        yield supervisor
        await supervisor.shutdown(force=True)


def no_copy(logs, copy):
    """Only the database was copied: the directory of logs is a new one."""


def links(logs, copy):
    shutil.copytree(logs, copy, copy_function=os.link)


def of_the_version_before(logs, copy):
    forget_place(logs)
    shutil.copytree(logs, copy)


def forget_place(logs):
    """As the version before had it: a key that does not say which directory it was made for."""
    key = logs / "token.key"
    key.write_bytes(key.read_bytes()[:32])


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.mark.parametrize("make_copy", [no_copy, shutil.copytree, links, of_the_version_before])
@pytest.mark.parametrize("alive_manager", [True, False], ids=["its manager lives", "its manager was killed"])
async def test_a_copy_neither_adopts_nor_ends_what_the_original_runs(
    supervisor, recorder, command, alive, logs, tmp_path, make_copy, alive_manager
):
    spec, copy = command(), tmp_path / "copy"
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
        (instance,) = s.instances()
        records = list(recorder.records.values())
        if alive_manager:
            make_copy(logs, copy)
            async with another(copy, (spec, records)) as of_the_copy:
                assert of_the_copy.instances() == ()
            assert s.instances()[0].pid == instance.pid
    if not alive_manager:
        make_copy(logs, copy)
        assert [found.owner for found in strangers(records, copy)] == [logs]
        async with another(copy, (spec, records)) as of_the_copy:
            assert of_the_copy.instances() == ()
    assert alive(instance.pid)
    async with supervisor(adopt=[(spec, records)]) as s:
        assert s.instances()[0].pid == instance.pid


@pytest.mark.parametrize("make_copy", [shutil.copytree, links, of_the_version_before])
async def test_nor_what_has_shed_its_marks(supervisor, recorder, daemons, daemon, logs, tmp_path, make_copy):  # noqa: F811
    async with supervisor(leave_running=True) as s:
        await s.start(daemon)
    (escaped,) = daemons()
    make_copy(logs, tmp_path / "copy")
    async with another(tmp_path / "copy"):
        assert daemons() == [escaped]
    assert daemons() == [escaped]
    async with supervisor(adopt=[(daemon, list(recorder.records.values()))]) as s:
        await s.stop(daemon.service_id)


async def test_a_copy_starts_instances_of_its_own(supervisor, recorder, command, logs, tmp_path):
    spec = command()
    async with supervisor() as s:
        await s.start(spec)
        shutil.copytree(logs, tmp_path / "copy")
        async with another(tmp_path / "copy", (spec, list(recorder.records.values()))) as of_the_copy:
            await of_the_copy.start(spec)
            assert of_the_copy.instances()[0].pid != s.instances()[0].pid
        assert len(s.instances()) == 1


async def test_a_copy_says_whose_process_has_its_port(supervisor, command, logs, tmp_path):
    async with supervisor() as s:
        await s.start(command())
        taken = command(port=s.instances()[0].port)
        async with another(tmp_path / "copy") as of_the_copy:
            with pytest.raises(PortNotAvailable, match=f"port {taken.port} .*, which belongs to {logs};"):
                await of_the_copy.start(taken)


def renamed(logs, place):
    logs.rename(place)


def upgraded(logs, place):
    forget_place(logs)
    renamed(logs, place)


def removed(logs, place):
    """As by one who wants the room: what it said is lost, and the secret too."""
    shutil.rmtree(logs)


def tidied(logs, place):
    for path in logs.glob("*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("change", "name"), [(renamed, "moved"), (upgraded, "logs2"), (removed, "logs"), (tidied, "logs")]
)
async def test_the_directory_itself_is_known_whatever_happens_to_it(
    supervisor, recorder, command, logs, tmp_path, change, name
):
    spec = command()
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
        (instance,) = s.instances()
    records = list(recorder.records.values())
    change(logs, tmp_path / name)
    assert strangers(records, tmp_path / name) == []
    for _ in range(2):  # also by the one after that
        async with trio.open_nursery() as nursery:
            s = Supervisor(log_dir=tmp_path / name)

            async def run(task_status, s=s):
                await s.run(adopt=[(spec, records)], task_status=task_status)

            await nursery.start(run)
            assert [i.pid for i in s.instances()] == [instance.pid]
            await s.shutdown(leave_running=True)
    async with another(tmp_path / name, (spec, records)):
        pass


async def test_what_is_claimed_belongs_to_the_one_that_claimed_it(
    supervisor, recorder, command, logs, tmp_path
):
    spec, mine = command(), tmp_path / "mine"
    async with supervisor(leave_running=True) as s:
        await s.start(spec)
        (instance,) = s.instances()
    records = list(recorder.records.values())
    shutil.rmtree(logs)
    (found,) = strangers(records, mine)
    assert owner(instance.pid) == logs
    claim(found, mine)
    assert strangers(records, mine) == []
    shutil.copytree(mine, tmp_path / "copy")
    assert strangers(records, tmp_path / "copy") != [], "the claim is not copied"
    async with another(mine, (spec, records)) as s:
        assert s.instances()[0].pid == instance.pid
    assert list((mine / ".lifelines").iterdir()) == []
