"""Claims in a cluster in memory, over the ends of Ray, of machines and of managers."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from agentmgr.cluster.engine import Demand
from agentmgr.models import Instance, ServiceConfig, ServiceSpec, ServiceStatus
from agentmgr.testing.memory_cluster import MemoryCluster, memory_cluster
from agentmgr.testing.memory_engine import MemoryRay

BASE = {"agent_factory_path": "agent.py", "drain_timeout": 1, "restart_delay": 0.1}


@pytest.fixture
def ray() -> MemoryRay:
    ray = MemoryRay()
    ray.add("", {}, {"CPU": 2})
    for name in "bc":
        ray.add(f"nod_{name}", {"ray.io/accelerator-type": f"H{name}"}, {"CPU": 4, "GPU": 2})
    return ray


@pytest.fixture
async def cluster(tmp_path: Path, ray: MemoryRay) -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(tmp_path, "b", "c", ray=ray) as cluster:
        await cluster.start_manager()
        await trio.sleep(4)
        yield cluster


def spec(name: str, **config: object) -> ServiceSpec:
    return ServiceSpec(name, ServiceConfig(**BASE, **config), service_id=f"svc_{name}")  # type: ignore[arg-type]


def seen(cluster: MemoryCluster, name: str) -> list[Instance]:
    return list(cluster.supervisor.instances(f"svc_{name}"))


def uses(cluster: MemoryCluster) -> list[tuple[str, str]]:
    """Machine and number of each GPU that a process uses."""
    return [(it.machine, gpu) for it in cluster.alive for gpu in it.record.gpus]


async def test_each_instance_has_a_gpu_of_its_own_and_the_fifth_waits_until_one_is_free(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("llm", gpus=1, instances=5))
    await cluster.register(spec("plain"))
    await trio.sleep(3)
    assert sorted(uses(cluster)) == [("b", "0"), ("b", "1"), ("c", "0"), ("c", "1")]
    waiting = [it for it in seen(cluster, "llm") if it.status is ServiceStatus.STARTING]
    assert [it.error_message for it in waiting] == ["waits for 1 GPU: none is free"]
    running = next(it for it in seen(cluster, "llm") if it.status is ServiceStatus.RUNNING)
    assert running.gpus
    assert running.node in "bc"
    assert [it.gpus for it in seen(cluster, "plain")] == [()]
    ray.add("nod_d", {}, {"CPU": 2, "GPU": 1})  # as an autoscaler does
    cluster.machines["d"] = cluster.new_machine("d")
    await cluster.start_daemon("d")
    assert cluster.manager is not None
    cluster.manager.nodes.add("nod_d", "d")
    await trio.sleep(3)
    assert ("d", "0") in uses(cluster)
    assert {it.status for it in seen(cluster, "llm")} == {ServiceStatus.RUNNING}


async def test_placement_by_the_labels_of_machines_and_by_the_name_of_a_node(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    for name, place_on in (
        ("bare", "accelerator-type=Hc"),
        ("full", "ray.io/accelerator-type=in(Hc,Hx)"),
        ("node", "node=c"),
        ("not", "node=!b"),
    ):
        await cluster.register(spec(name, cpus=1, place_on=[place_on]))
    await cluster.register(spec("never", cpus=1, place_on=["node=x"]))
    await cluster.register(spec("unclaimed", place_on=["accelerator-type=Hb"]))
    await trio.sleep(3)
    assert {it.node for name in ("bare", "full", "node") for it in seen(cluster, name)} == {"c"}
    assert seen(cluster, "not")[0].node in "ac"
    assert seen(cluster, "unclaimed")[0].node == "b"
    (never,) = seen(cluster, "never")
    assert (never.error_message or "").startswith("waits for a node with node=x")


async def test_all_of_ray_ends_and_starts_anew_under_instances_that_live_on(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("llm", gpus=1, instances=3))
    await trio.sleep(3)
    before = {it.record.token for it in cluster.alive}
    ray.stop()
    await trio.sleep(30)
    await cluster.register(spec("more", gpus=1))
    await cluster.register(spec("plain"))
    await trio.sleep(3)
    assert seen(cluster, "plain")[0].status is ServiceStatus.RUNNING, "Ray is not needed for it"
    assert seen(cluster, "more")[0].error_message == "waits for Ray: nothing of it runs"
    ray.start()
    await trio.sleep(5)
    assert before < {it.record.token for it in cluster.alive}
    assert len(set(uses(cluster))) == 4 == len(ray.claims)
    by_machine = Counter(ray.machines[it.engine_id].node_id for it in ray.claims.values())
    assert by_machine == {"nod_b": 2, "nod_c": 2}


async def test_a_claim_follows_an_instance_whose_machine_is_lost(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("llm", gpus=1, place_on=["node=in(b,c)"], instances=2))
    await trio.sleep(3)
    assert {it.machine for it in cluster.alive} == {"b", "c"}
    cluster.power_off("b")
    await trio.sleep(14)
    ray.lose("nod_b")
    await trio.sleep(5)
    assert sorted(uses(cluster)) == [("c", "0"), ("c", "1")]
    assert {ray.machines[it.engine_id].node_id for it in ray.claims.values()} == {"nod_c"}


async def test_where_only_the_raylet_is_dead_the_instance_lives_and_gets_its_claim_back(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("llm", gpus=2, place_on=["node=b"]))
    await trio.sleep(3)
    before = set(cluster.alive)
    ray.lose("nod_b")
    await trio.sleep(60)
    assert set(cluster.alive) == before
    assert ray.claims == {}, "Ray has none of it elsewhere"
    assert cluster.manager is not None
    assert cluster.manager.nodes.state_of("nod_b")[1] == "the engine says that it is gone: its raylet died"
    engine_id = ray.add("nod_b", {}, {"CPU": 4, "GPU": 2})
    await trio.sleep(5)
    assert set(cluster.alive) == before
    assert [it.engine_id for it in ray.claims.values()] == [engine_id]


async def test_the_next_manager_finds_the_claims_and_gives_back_what_no_instance_has(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("llm", gpus=1, instances=3))
    await cluster.register(spec("gone", gpus=1))
    await trio.sleep(3)
    before = dict(ray.claims)
    assert len(before) == 4
    cluster.kill_manager()
    (gone,) = [it for it in cluster.alive if it.record.service_id == "svc_gone"]
    gone.kill_now()
    del cluster.services["svc_gone"]
    del cluster.records[gone.record.instance_id]
    await cluster.start_manager()
    await trio.sleep(10)
    claim_id = f"agentmgr/memory/{gone.record.instance_id}"
    assert ray.claims == {it: claim for it, claim in before.items() if it != claim_id}
    assert len({it.gpus for it in seen(cluster, "llm")}) >= 2
    assert cluster.manager is not None
    assert cluster.manager.claims is not None
    assert cluster.manager.claims.troubles() == ()


async def test_a_manager_that_was_replaced_lets_go_of_nothing_that_the_newer_one_has(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("llm", gpus=1, instances=2))
    await trio.sleep(3)
    assert cluster.manager is not None
    assert cluster.manager.claims is not None
    cluster.manager.nodes.retire()
    newer, held = "agentmgr/memory/ins_newer", ray.held
    assert ray.grant(newer, Demand(gpus=1), None) is not None
    cluster.manager.claims.claims_found(ray.claims)
    for instance in seen(cluster, "llm"):
        cluster.manager.claims.forget(instance.instance_id)  # left to the newer one
        cluster.manager.claims.placed.remove(instance.instance_id)
    cluster.manager.claims.update_holds()
    await trio.sleep(5)
    assert len(ray.claims) == 3
    assert ray.held == held


async def test_a_stopped_instance_gives_its_claim_back_and_one_that_restarts_keeps_it(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("llm", gpus=1))
    await trio.sleep(3)
    claims = dict(ray.claims)
    (process,) = cluster.alive
    process.kill_now()
    await trio.sleep(3)
    assert ray.claims == claims
    assert len(cluster.alive) == 1
    await cluster.supervisor.stop("svc_llm")
    await trio.sleep(1)
    assert ray.claims == {}


async def test_machines_with_instances_are_held(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    assert ray.held == frozenset()
    await cluster.register(spec("plain", place_on=["node=b"]))
    await trio.sleep(3)
    assert {ray.machines[it].node_id for it in ray.held} == {"nod_b"}
    ray.stop()
    ray.start()
    await trio.sleep(3)
    assert {ray.machines[it].node_id for it in ray.held} == {"nod_b"}
    await cluster.supervisor.stop("svc_plain")
    await trio.sleep(1)
    assert ray.held == frozenset()


async def test_a_pending_claim_keeps_off_a_node_that_is_cordoned_meanwhile(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("first", gpus=2, place_on=["node=b"]))
    await cluster.register(spec("other", gpus=2, place_on=["node=c"]))
    await trio.sleep(3)
    await cluster.register(spec("third", gpus=2))
    await trio.sleep(1)
    assert cluster.manager is not None
    cluster.manager.nodes.cordon("nod_b", True)
    await cluster.supervisor.stop("svc_first")
    await trio.sleep(3)
    assert seen(cluster, "third")[0].status is ServiceStatus.STARTING
    cluster.manager.nodes.cordon("nod_b", False)
    await trio.sleep(3)
    assert seen(cluster, "third")[0].node == "b"


async def test_a_rolling_restart_makes_room_one_by_one_where_all_is_in_use(
    cluster: MemoryCluster, ray: MemoryRay, autojump_clock: object
) -> None:
    await cluster.register(spec("llm", gpus=1, instances=4))
    await trio.sleep(3)
    before = {it.instance_id for it in seen(cluster, "llm")}
    least = 4
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal least
            while True:
                await cluster.supervisor.changed()
                serving = [it for it in seen(cluster, "llm") if it.status is ServiceStatus.RUNNING]
                least = min(least, len(serving))

        nursery.start_soon(watch)
        await cluster.supervisor.restart(spec("llm", gpus=1, instances=4))
        nursery.cancel_scope.cancel()
    after = seen(cluster, "llm")
    assert {it.status for it in after} == {ServiceStatus.RUNNING}
    assert before.isdisjoint({it.instance_id for it in after})
    assert least == 3
    assert len(set(uses(cluster))) == 4


async def test_the_daemon_of_a_node_is_started_again_and_again_until_it_is_linked(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    assert cluster.manager is not None
    assert cluster.manager.claims is not None
    revived = Counter[str]()
    monkeypatch.setattr(cluster.manager.claims.engine, "revive", lambda node_id: revived.update([node_id]))
    cluster.kill_daemon("b")
    await trio.sleep(90)  # while it starts it may be killed again, which no link tells
    assert cluster.is_lost("b")
    assert revived.keys() == {"nod_b"}
    assert revived["nod_b"] >= 3
    await cluster.start_daemon("b")
    await trio.sleep(30)
    revived.clear()
    await trio.sleep(90)
    assert not revived
