"""A node is drained: what it runs is moved to others, and what cannot move runs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from agentmgr.core.restart import Exit
from agentmgr.manager.node_drain import NodeDrain
from agentmgr.models import RestartMode, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.testing import Behaviour
from agentmgr.testing.memory_cluster import MemoryCluster, memory_cluster

LIVELY = Behaviour(ready_after_s=2, stop_takes_s=0.1, conversation_takes_s=3)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path, "b", "c", behaviour=LIVELY) as cluster:
        await cluster.start_manager()
        await trio.sleep(3)
        yield cluster


def agents(name: str, **config: object) -> ServiceSpec:
    return ServiceSpec(name, ServiceConfig(agent_factory_path="agent.py", **config))  # type: ignore[arg-type]


def on(cluster: MemoryCluster, machine: str) -> list[str]:
    """The names of the services of the processes there."""
    return sorted(process.name for process in cluster.alive if process.machine == machine)


async def drained(cluster: MemoryCluster, name: str, within_s: float = 60) -> NodeDrain:
    manager = cluster.manager
    assert manager is not None
    node_id = cluster.machines[name].node_id
    manager.nodes.cordon(node_id, True)
    drain = NodeDrain(manager.supervisor, manager.launcher, node_id)
    with trio.move_on_after(within_s):
        await drain.run()
    return drain


def serving(cluster: MemoryCluster) -> Counter[str]:
    statuses = (ServiceStatus.RUNNING, ServiceStatus.UNHEALTHY)
    return Counter(it.service_id for it in cluster.supervisor.instances() if it.status in statuses)


async def test_each_instance_is_replaced_elsewhere_before_it_ends_all_of_them_at_once(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    one, two = agents("one", instances=6), agents("two", instances="1..3", max_sessions=3)
    await cluster.register(one)
    await cluster.register(two)
    await trio.sleep(5)
    cluster.supervisor.scale(two, 3)
    await trio.sleep(5)
    assert on(cluster, "b") == ["one", "one", "two"]
    before, began = {it.instance_id for it in cluster.supervisor.instances()}, trio.current_time()
    fewest = serving(cluster)

    async def watch() -> None:
        nonlocal fewest
        while True:
            fewest &= serving(cluster)
            await cluster.supervisor.changed()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        drain = await drained(cluster, "b")
        nursery.cancel_scope.cancel()
    assert (drain.moved, list(drain.left()), on(cluster, "b")) == (3, [], [])
    assert fewest == {one.service_id: 6, two.service_id: 3}
    assert len(before & {it.instance_id for it in cluster.supervisor.instances()}) == 6
    assert trio.current_time() - began < 2 * (LIVELY.ready_after_s + 3), "not one after the other"
    again = await drained(cluster, "b")
    assert (again.moved, list(again.left())) == (0, [])


async def test_what_cannot_move_runs_on_and_is_named_with_the_reason(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    specs = [
        agents("bound", place_on=["zone=b"]),
        agents("once", place_on=["zone=b"], on_node_loss="wait"),
        agents("free", instances=3),
        ServiceSpec(
            "work", ServiceConfig(command=("x",), restart=RestartMode.NEVER, place_on=["zone=in(b,x)"])
        ),
    ]
    for spec in specs:
        await cluster.register(spec)
    await trio.sleep(5)
    pids = {process.record.pid for process in cluster.alive if process.machine == "b"}
    drain = await drained(cluster, "b", within_s=20)
    why = {it.service: it.reason for it in drain.left()}
    assert sorted(why) == on(cluster, "b") == ["bound", "once", "work"]
    assert {process.record.pid for process in cluster.alive if process.machine == "b"} < pids
    assert why["bound"].startswith("it needs a node with zone=b: no node matches")
    assert "`agentmgr stop once`" in why["once"]
    assert why["work"] == "it is a job, and has not ended yet"
    assert drain.moved == 1

    # A job that ends in time is waited for.
    async with trio.open_nursery() as nursery:
        results: list[NodeDrain] = []

        async def again() -> None:
            results.append(await drained(cluster, "b"))

        nursery.start_soon(again)
        await trio.sleep(5)
        assert results == []
        (work,) = [process for process in cluster.alive if process.name == "work"]
        work.die(Exit(code=0))
    assert sorted(it.service for it in results[0].left()) == ["bound", "once"]


async def test_what_has_not_moved_in_time_stays_and_what_is_not_ready_is_ended(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    await cluster.register(agents("svc", instances=3, place_on=["zone=in(b,c)"]))
    await trio.sleep(10)
    assert cluster.manager is not None
    cluster.manager.nodes.cordon("nod_c", True)
    stuck = await drained(cluster, "b")
    assert {it.reason for it in stuck.left()} == {"it needs a node with zone=in(b,c): c is cordoned"}
    cluster.manager.nodes.cordon("nod_c", False)
    before = on(cluster, "b")
    drain = await drained(cluster, "b", within_s=1)
    assert [it.reason for it in drain.left()] == [
        "the instance that is to take its place is not ready yet"
    ] * len(before)
    await trio.sleep(1)
    assert (on(cluster, "b"), len(cluster.alive)) == (before, 3)
    drain = await drained(cluster, "b", within_s=3)
    assert {it.reason for it in drain.left()} == {"it drains: its turns have not ended yet"}
    await trio.sleep(10)
    assert (on(cluster, "b"), len(cluster.alive)) == ([], 3)


async def test_a_drain_goes_on_under_the_next_manager_as_far_as_it_had_come(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    await cluster.register(agents("svc", instances=6))
    await trio.sleep(10)
    with trio.move_on_after(3.5):  # the new ones are ready, the old ones drain
        await drained(cluster, "b")
    cluster.kill_manager()
    await cluster.start_manager()
    await trio.sleep(30)
    assert len(cluster.alive) == 6
    assert len({(it.service_id, it.slot) for it in cluster.supervisor.instances()}) == 6
    drain = await drained(cluster, "b")
    assert (list(drain.left()), on(cluster, "b"), len(cluster.alive)) == ([], [], 6)


async def test_what_is_about_to_be_launched_there_is_moved_too(
    cluster: MemoryCluster, autojump_clock: object
) -> None:
    await cluster.register(agents("svc", instances=30, place_on=["zone=in(b,c)"]))
    await trio.sleep(0.1)  # some wait for a permit of b
    drain = await drained(cluster, "b")
    assert (list(drain.left()), on(cluster, "b")) == ([], [])
    await trio.sleep(60)
    assert (on(cluster, "b"), len(cluster.alive)) == ([], 30)
    assert set(serving(cluster).values()) == {30}
