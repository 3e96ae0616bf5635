"""What operators and load ask of a service whose instances are on several machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from attrs import evolve

from agentmgr.core.restart import Exit
from agentmgr.models import RestartMode, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.testing import Behaviour
from agentmgr.testing.memory_cluster import MemoryCluster, memory_cluster

LIVELY = Behaviour(ready_after_s=0.3, stop_takes_s=0.1, conversation_takes_s=5)


def service(**config: object) -> ServiceSpec:
    return ServiceSpec("svc", ServiceConfig(agent_factory_path="agent.py", **config))  # type: ignore[arg-type]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path, "b", "c", behaviour=LIVELY) as cluster:
        await cluster.start_manager()
        await trio.sleep(3)
        yield cluster


def where(cluster: MemoryCluster) -> Counter[str]:
    """How many run on each machine, none of which the manager has not."""
    mine = {it.pid for it in cluster.supervisor.instances() if it.pid is not None}
    assert mine == {it.record.pid for it in cluster.alive}
    return Counter(process.machine for process in cluster.alive)


def nodes(cluster: MemoryCluster) -> dict[str, str]:
    """The node of each instance, by id."""
    return {it.instance_id: it.node for it in cluster.supervisor.instances()}


async def test_a_range_grows_over_the_nodes_and_those_that_are_too_many_drain(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    spec = service(instances="2..6", max_sessions=10)
    await cluster.register(spec)
    await trio.sleep(3)
    assert cluster.supervisor.scale(spec, 6) == (2, 6)
    await trio.sleep(3)
    assert where(cluster) == Counter("aabbcc")
    surplus = [it for it in cluster.supervisor.instances() if it.node in "bc"][:3]
    assert cluster.supervisor.scale(spec, 3, [it.instance_id for it in surplus]) == (6, 3)
    await trio.sleep(3)
    statuses = Counter(it.status for it in cluster.supervisor.instances())
    assert statuses == {ServiceStatus.RUNNING: 3, ServiceStatus.DRAINING: 3}, "their conversations go on"
    await trio.sleep(5)
    assert sum(where(cluster).values()) == 3
    assert not {it.instance_id for it in surplus} & nodes(cluster).keys()


async def test_one_that_drains_on_a_silent_node_ends_when_that_is_lost(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    spec = service(instances="1..3", max_sessions=10)
    await cluster.register(spec)
    cluster.supervisor.scale(spec, 3)
    await trio.sleep(3)
    (on_b,) = [it for it in cluster.supervisor.instances() if it.node == "b"]
    cluster.cut("b")
    await trio.sleep(5)
    cluster.supervisor.scale(spec, 2, [on_b.instance_id])
    await trio.sleep(40)
    assert on_b.instance_id not in nodes(cluster)
    cluster.mend("b")
    await trio.sleep(10)
    assert sum(where(cluster).values()) == 2, "and the node ends it when it is back"


async def test_what_sleeps_keeps_ids_nodes_and_ports_and_wakes_there(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    spec = service(instances=3)
    await cluster.register(spec)
    await trio.sleep(3)
    before = nodes(cluster)
    assert await cluster.supervisor.put_to_sleep(spec.service_id, "unused for 300 s")
    await trio.sleep(1)
    assert cluster.alive == []
    leases = {name: set(machine.processes.leases) for name, machine in cluster.machines.items()}
    assert leases == {name: {one for one, node in before.items() if node == name} for name in "abc"}
    await cluster.supervisor.start(spec)
    assert nodes(cluster) == before

    # Where it may not wake there, it does elsewhere, and the port is given up.
    assert await cluster.supervisor.put_to_sleep(spec.service_id, "unused for 300 s")
    assert cluster.manager is not None
    cluster.manager.nodes.cordon("nod_c", True)
    await cluster.supervisor.start(spec)
    assert nodes(cluster).keys() == before.keys()
    assert "c" not in nodes(cluster).values()
    await trio.sleep(1)
    assert cluster.machines["c"].processes.leases == set()
    assert sum(where(cluster).values()) == 3


async def test_a_rolling_restart_replaces_each_instance_on_its_node(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    spec = service(instances=3)
    await cluster.register(spec)
    await trio.sleep(3)
    before = {it.slot: (it.node, it.pid) for it in cluster.supervisor.instances()}
    await cluster.supervisor.restart(spec.changed(config=evolve(spec.config, max_sessions=7)))
    after = {it.slot: (it.node, it.pid) for it in cluster.supervisor.instances()}
    assert [after[slot][0] for slot in after] == [before[slot][0] for slot in before]
    assert not {pid for _, pid in after.values()} & {pid for _, pid in before.values()}
    assert where(cluster) == Counter("abc")


async def test_a_job_that_was_lost_with_its_node_is_not_repeated(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    spec = ServiceSpec(
        "job", ServiceConfig(command=("work",), restart=RestartMode.NEVER, place_on=["node=b"])
    )
    await cluster.register(spec)
    await trio.sleep(3)
    (process,) = cluster.alive
    cluster.power_off("b")
    await trio.sleep(20)
    (instance,) = cluster.supervisor.instances()
    assert instance.status is ServiceStatus.ERROR
    assert "what it had done is not known, so it is not repeated" in str(instance.error_message)
    await cluster.power_on("b")
    await trio.sleep(20)
    assert cluster.alive == []
    assert process._exit == Exit(signal=9)
