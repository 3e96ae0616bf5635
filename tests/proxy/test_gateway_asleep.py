"""A client that comes for a service which is asleep has it started, and waits for it."""

from __future__ import annotations

import trio
from attrs import evolve

from agentmgr.core.request import ClientRequest
from agentmgr.core.routing import BackendState, RoutingTable
from agentmgr.models import RoutingRule, RoutingStrategy
from agentmgr.proxy import GatewayLimits

LIMITS = GatewayLimits(queue_timeout_s=0.2, close_timeout_s=0.5)


def asleep(backend, **facts):
    facts = {"starts_within": 30.0, **facts}
    return evolve(backend, port=0, state=BackendState.ASLEEP, **facts)


async def waiting(stage, count: int) -> None:
    """Returns once so many clients wait."""
    await stage.nursery.start(_until_waiting, stage, count)


async def _until_waiting(stage, count: int, task_status) -> None:
    with trio.fail_after(60):
        while len(stage.gateway.lobby._waiting) < count:  # noqa: ASYNC110
            await trio.sleep(0.005)
    task_status.started()


def opened(stage) -> list[str]:
    return [connection.service_name for connection in stage.witness.opened]


async def test_200_clients_at_once_start_it_once_and_all_are_served(lab) -> None:
    backend, woken = await lab.instance("echo"), []
    async with lab.gateway(asleep(backend), wake=woken.append, limits=LIMITS) as stage:
        peers = [await stage.connect(lab.upgrade("/services/echo")) for _ in range(200)]
        await waiting(stage, 200)
        assert woken == ["svc_echo"]
        stage.gateway.update(RoutingTable((evolve(backend, state=BackendState.COMING, starts_within=30),)))
        await trio.sleep(0.3)  # longer than a client waits for a seat
        assert woken == ["svc_echo"]
        stage.gateway.update(RoutingTable((backend,)))
        for peer in peers:
            assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_a_client_that_leaves_while_it_is_started_leaves_nothing(lab) -> None:
    backend, woken = await lab.instance("echo"), []
    async with lab.gateway(asleep(backend), wake=woken.append) as stage:
        peer = await stage.connect(lab.upgrade("/services/echo"))
        await waiting(stage, 1)
        await peer.stream.aclose()
        await lab.eventually(lambda: not stage.gateway.lobby._waiting)
        stage.gateway.update(RoutingTable((backend,)))
        assert stage.gateway.active_connections(backend.instance_id) == 0
        assert (woken, stage.witness.opened) == (["svc_echo"], [])


async def test_it_is_asked_for_again_with_the_next_table_and_the_next_manager(lab) -> None:
    """The table may have been on its way when it was asked for, and a manager may have died."""
    backend, woken = await lab.instance("echo"), []
    async with lab.gateway(asleep(backend), wake=woken.append) as stage:
        await stage.connect(lab.upgrade("/"))
        await waiting(stage, 1)
        stage.gateway.update(RoutingTable((asleep(backend),)))
        assert woken == ["svc_echo"] * 2
        stage.gateway.lobby.serve_waiting()
        assert woken == ["svc_echo"] * 2
        stage.gateway.table_is_old()
        stage.gateway.lobby.serve_waiting()
        assert woken == ["svc_echo"] * 3


async def test_it_is_not_started_where_another_one_can_take_the_client_or_comes(lab) -> None:
    first, second = await lab.instance("first", max_sessions=1), await lab.instance("second")
    woken: list[str] = []
    async with lab.gateway(first, asleep(second), wake=woken.append) as stage:
        peer = await stage.open("/")
        assert (opened(stage), woken) == (["first"], [])
        await stage.connect(lab.upgrade("/"))
        await waiting(stage, 1)
        assert woken == ["svc_second"]  # the first one is full
        await peer.stream.aclose()
        await lab.eventually(lambda: len(opened(stage)) == 2)
        coming = evolve(first, state=BackendState.COMING)
        stage.gateway.update(RoutingTable((coming, asleep(second))))
        await stage.connect(lab.upgrade("/"))
        await waiting(stage, 1)
        assert woken == ["svc_second"]


async def test_of_many_one_is_started_by_the_rule_of_the_client(lab) -> None:
    backends = [asleep(lab.backend(1, name)) for name in ("one", "two", "three")]
    rule = RoutingRule("r", target_services=("three", "two"), target_strategy=RoutingStrategy.MANUAL)
    woken: list[str] = []
    async with lab.gateway(*backends, wake=woken.append, table={"rules": (rule,)}) as stage:
        decision = stage.gateway.route(ClientRequest("/"))
        assert (decision.service, decision.code, woken) == ("three", None, [])
        assert "is asleep" in decision.reason
        for _ in range(3):
            await stage.connect(lab.upgrade("/"))
        await waiting(stage, 3)
        assert woken == ["svc_three"]
    woken.clear()
    async with lab.gateway(*backends, wake=woken.append) as stage:  # by turns, if they were awake
        for _ in range(3):
            await stage.connect(lab.upgrade("/"))
        await waiting(stage, 3)
        stage.gateway.update(RoutingTable(tuple(reversed(backends))))
        assert len(woken) == 2
        assert len(set(woken)) == 1


async def test_a_stop_beats_it_and_its_clients_hear_so_at_once(lab) -> None:
    backend, woken = await lab.instance("echo"), []
    async with lab.gateway(asleep(backend), wake=woken.append) as stage:
        peer = await stage.connect(lab.upgrade("/services/echo"))
        await waiting(stage, 1)
        stage.gateway.update(RoutingTable((), service_names=frozenset({"echo"})))
        with trio.fail_after(5):
            assert b"no_service_available" in await peer.rest()


async def test_a_session_leads_to_its_service_while_that_is_asleep_or_comes(lab) -> None:
    home, other = await lab.instance("home", instance_id="ins_home"), await lab.instance("other")
    woken: list[str] = []
    async with lab.gateway(asleep(home), other, wake=woken.append) as stage:
        peer = await stage.connect(lab.upgrade("/?session_id=ses_77.ins_home"))
        await waiting(stage, 1)
        assert woken == ["svc_home"]
        coming = evolve(home, state=BackendState.COMING, starts_within=30)
        stage.gateway.update(RoutingTable((coming, other)))
        await waiting(stage, 1)
        stage.gateway.update(RoutingTable((home, other)))
        assert (await peer.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")
        assert opened(stage) == ["home"]
