"""Seats and waiting: `max_sessions` is exact, waiting is fair, and a coming instance is waited for."""

from __future__ import annotations

import trio
from attrs import evolve

from agentmgr.core.request import ClientRequest
from agentmgr.core.routing import BackendState, RoutingTable
from agentmgr.models import RoutingStrategy
from agentmgr.proxy import GatewayLimits


async def test_max_sessions_is_exact_in_a_storm(lab) -> None:
    most = 0

    async def counting(stream: trio.SocketStream) -> None:
        nonlocal most
        counting.live += 1  # type: ignore[attr-defined]
        most = max(most, counting.live)  # type: ignore[attr-defined]
        peer = lab.Peer(stream)
        try:
            await peer.until(b"\r\n\r\n")
            await stream.send_all(lab.switching())
            await peer.rest()
        finally:
            counting.live -= 1  # type: ignore[attr-defined]

    counting.live = 0  # type: ignore[attr-defined]
    served = 0

    async def client() -> None:
        nonlocal served
        peer = await stage.connect(lab.upgrade())
        assert (await peer.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        served += 1
        await peer.stream.aclose()

    instance = await lab.raw(counting, max_sessions=3)
    async with lab.gateway(instance) as stage:
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(client)
        await stage.witness.ends(60)
        assert stage.gateway.active_connections(instance.instance_id) == 0
    assert (served, most) == (60, 3)


async def test_those_who_wait_are_served_in_their_order(lab) -> None:
    async with lab.gateway(await lab.instance(max_sessions=1)) as stage:
        holder = await stage.open()
        waiting = [await stage.connect(lab.upgrade(f"/{i}")) for i in range(4)]
        for peer in waiting:
            await trio.testing.wait_all_tasks_blocked(0.01)
            await holder.stream.aclose()
            holder = peer
            assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")
        assert [c.path for c in stage.witness.opened] == ["/", "/0", "/1", "/2", "/3"]


async def test_a_seat_goes_past_those_who_wait_for_another_service(lab) -> None:
    busy, free = await lab.instance("busy", max_sessions=1), await lab.instance("free", max_sessions=1)
    async with lab.gateway(busy, free) as stage:
        await stage.open("/services/busy")
        holder = await stage.open("/services/free")
        waiting = []
        for path in ("/services/busy", "/services/free", "/services/free"):
            waiting.append(await stage.connect(lab.upgrade(path)))
            await trio.testing.wait_all_tasks_blocked(0.01)
        stage.gateway.update(RoutingTable((busy, free)))  # which costs nobody their place
        for peer in waiting[1:]:
            await holder.stream.aclose()
            holder = peer
            assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_a_wait_ends_with_503_and_when_to_come_back(lab) -> None:
    async with lab.gateway(
        await lab.instance(max_sessions=1), limits=GatewayLimits(queue_timeout_s=0.05)
    ) as stage:
        await stage.open()
        status, code, headers = await stage.refusal(lab.upgrade())
        assert (status, code, headers["retry-after"]) == (503, "at_capacity", "2")


async def test_the_queue_is_bounded(lab) -> None:
    async with lab.gateway(await lab.instance(max_sessions=1), limits=GatewayLimits(queue_size=1)) as stage:
        await stage.open()
        await stage.connect(lab.upgrade())
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await stage.refusal(lab.upgrade()))[:2] == (503, "at_capacity")


async def test_one_who_leaves_the_queue_takes_no_seat(lab) -> None:
    async with lab.gateway(await lab.instance(max_sessions=1)) as stage:
        holder = await stage.open()
        leaver = await stage.connect(lab.upgrade("/leaver"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await leaver.stream.aclose()
        patient = await stage.connect(lab.upgrade("/patient"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await holder.stream.aclose()
        assert (await patient.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")
        assert [c.path for c in stage.witness.opened] == ["/", "/patient"]


async def test_an_instance_that_is_coming_is_waited_for(lab) -> None:
    instance = await lab.instance()
    async with lab.gateway(evolve(instance, state=BackendState.COMING)) as stage:
        peer = await stage.connect(lab.upgrade())
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert stage.gateway.connections() == ()
        stage.gateway.update(RoutingTable((instance,)))
        assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_one_that_is_given_up_while_clients_wait_refuses_them_at_once(lab) -> None:
    coming = lab.backend(1, state=BackendState.COMING)
    async with lab.gateway(coming) as stage:
        peer = await stage.connect(lab.upgrade())
        await trio.testing.wait_all_tasks_blocked(0.01)
        stage.gateway.update(RoutingTable((evolve(coming, state=BackendState.DOWN),)))
        assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 503 ")


async def test_draining_and_down_instances_get_nobody(lab) -> None:
    states = (BackendState.DRAINING, BackendState.DOWN)
    async with lab.gateway(
        *[evolve(await lab.instance(f"s{i}"), state=s) for i, s in enumerate(states)]
    ) as stage:
        assert (await stage.refusal(lab.upgrade()))[:2] == (503, "no_service_available")
        assert (await stage.refusal(lab.upgrade("/services/s0")))[:2] == (503, "no_service_available")


async def test_one_that_serves_no_connections_is_never_dialled_and_the_refusal_says_so(lab) -> None:
    worker = evolve(await lab.instance("worker"), state=BackendState.NO_LISTENER)
    async with lab.gateway(worker) as stage:
        assert (await stage.refusal(lab.upgrade("/services/worker")))[:2] == (503, "no_service_available")
        peer = await stage.connect(lab.upgrade("/services/worker"))
        assert b"names the service worker, and it serves no connections" in await peer.rest()
    async with lab.gateway(worker, await lab.instance("server")) as stage:
        for _ in range(4):  # whoever does not name it gets the other one
            await stage.open()
        assert [c.service_name for c in stage.witness.opened] == ["server"] * 4


async def test_a_named_session_returns_to_its_instance_also_while_that_drains(lab) -> None:
    one, two = await lab.instance("one"), await lab.instance("two")
    async with lab.gateway(one, two, table={"default_strategy": RoutingStrategy.MANUAL}) as stage:
        await stage.open("/?session_id=s1")
        stage.gateway.update(RoutingTable((evolve(one, state=BackendState.DRAINING), two)))
        await stage.open()
        await stage.open("/?session_id=s1")
        await stage.open("/", "X-Session-Id: s1")
        await stage.open("/", "Cookie: session_id=s1")
        await stage.open("/?session_id=s2")
        stage.gateway.update(RoutingTable((evolve(one, state=BackendState.DOWN), two)))
        await stage.open("/?session_id=s1")
        assert [c.service_name for c in stage.witness.opened] == [
            "one",
            "two",
            "one",
            "one",
            "one",
            "two",
            "two",
        ]


async def test_a_session_id_that_names_its_instance_needs_no_memory(lab) -> None:
    backends = [await lab.instance(f"s{i}", instance_id=f"ins_{i}") for i in range(3)]
    async with lab.gateway(*backends) as stage:
        for _ in range(3):
            await stage.open("/?session_id=ses_77.ins_2")
        assert {c.instance_id for c in stage.witness.opened} == {"ins_2"}


async def test_least_connections_counts_live_sessions_only(lab) -> None:
    one, two = await lab.instance("one"), await lab.instance("two")
    async with lab.gateway(one, two, table={"default_strategy": RoutingStrategy.LEAST_CONNECTIONS}) as stage:
        peers = [await stage.open() for _ in range(6)]
        assert (
            stage.gateway.active_connections(one.instance_id)
            == stage.gateway.active_connections(two.instance_id)
            == 3
        )
        ones = [p for p, c in zip(peers, stage.witness.opened, strict=True) if c.service_name == "one"]
        for peer in ones:
            await peer.stream.aclose()
        await stage.witness.ends(3)
        for _ in range(3):
            await stage.open()
        assert stage.gateway.active_connections(one.instance_id) == 3


async def test_route_says_who_would_be_chosen_and_changes_nothing(lab) -> None:
    one, two = await lab.instance("one"), await lab.instance("two")
    async with lab.gateway(one, two) as stage:
        decisions = [stage.gateway.route(ClientRequest()) for _ in range(3)]
        assert {d.chosen for d in decisions} == {one.instance_id}
        assert decisions[0].candidates == (one.instance_id, two.instance_id)
        assert stage.gateway.active_connections(one.instance_id) == 0
        unknown = stage.gateway.route(ClientRequest("/services/nobody"))
        assert (unknown.code, unknown.chosen) == ("service_not_found", None)
