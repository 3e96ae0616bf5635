"""A cluster in memory: cuts, losses, returns, and an hour without a manager."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from agentmgr.core.restart import Exit
from agentmgr.models import ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.testing.memory_cluster import MemoryCluster, Process, memory_cluster

CONFIG = ServiceConfig(agent_factory_path="agent.py", instances=4, drain_timeout=1)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path, "b", "c", "d") as cluster:
        await cluster.start_manager()
        await trio.sleep(3)
        await cluster.register(ServiceSpec("svc", CONFIG))
        await trio.sleep(3)
        assert where(cluster) == Counter("abcd")
        yield cluster


def where(cluster: MemoryCluster) -> Counter[str]:
    """How many run on each machine; all of them as the manager has it."""
    instances = cluster.supervisor.instances()
    assert {it.status for it in instances} == {ServiceStatus.RUNNING}, instances
    assert {it.restarts_left for it in instances} == {CONFIG.max_restart_count}
    assert sorted(it.pid or 0 for it in instances) == sorted(it.record.pid for it in cluster.alive)
    return Counter(process.machine for process in cluster.alive)


def processes(cluster: MemoryCluster) -> set[Process]:
    return set(cluster.alive)


async def test_a_short_cut_changes_nothing(cluster: MemoryCluster, autojump_clock: object) -> None:
    before = processes(cluster)
    cluster.cut("b")
    await trio.sleep(14)
    cluster.mend("b")
    await trio.sleep(60)
    assert processes(cluster) == before
    assert where(cluster) == Counter("abcd")


async def test_what_a_lost_machine_ran_is_started_elsewhere_and_ended_there_when_it_is_back(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    cluster.cut("b")
    await trio.sleep(20)
    assert Counter(it.machine for it in cluster.alive) == Counter("aabcd")
    cluster.mend("b")
    await trio.sleep(30)
    assert where(cluster) == Counter("aacd")


async def test_what_a_node_cannot_launch_for_want_of_something_goes_elsewhere(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    cluster.machines["b"].processes.refuse_next(100, reason="the disk is full")
    [there] = [it for it in cluster.alive if it.machine == "b"]
    there.die(Exit(code=1))
    await trio.sleep(60)
    assert Counter(it.machine for it in cluster.alive) == Counter("aacd")


async def test_a_machine_that_comes_back_empty_in_time_gets_its_own_again(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    before = processes(cluster)
    cluster.power_off("b")
    await trio.sleep(5)
    await cluster.power_on("b")
    await trio.sleep(30)
    assert where(cluster) == Counter("abcd")
    assert len(processes(cluster) - before) == 1


async def test_a_manager_that_is_cut_off_starts_nothing(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    before = processes(cluster)
    cluster.cut("a")
    await trio.sleep(3600)
    assert processes(cluster) == before
    cluster.mend("a")
    await trio.sleep(60)
    assert processes(cluster) == before
    assert where(cluster) == Counter("abcd")


async def test_an_hour_without_a_manager_and_its_daemons_killed(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    before = processes(cluster)
    cluster.kill_manager()
    await trio.sleep(1800)
    for name in "bcd":
        cluster.kill_daemon(name)
        await cluster.start_daemon(name)
    await trio.sleep(1800)
    assert processes(cluster) == before
    await cluster.start_manager()
    await trio.sleep(30)
    assert where(cluster) == Counter("abcd")
    assert processes(cluster) == before
