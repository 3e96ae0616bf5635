"""`Gateway` in somebody's application: no supervisor, no manager, backends of any kind."""

import os

import pytest
import trio

from agentmgr import (
    Backend,
    ClientRequest,
    ConditionOperator,
    Gateway,
    RoutingCondition,
    RoutingRule,
    RoutingTable,
)
from agentmgr.client import open_session
from agentmgr.errors import AgentUnreachable, ConnectionNotFound
from agentmgr.testing import bare_client, hosted, memory_network


def says(name):
    async def agent(message):
        return f"{name}: {message}"

    return agent


@pytest.fixture
async def network():
    async with memory_network() as network:
        yield network


async def test_a_new_table_holds_for_the_next_client_and_moves_nobody(autojump_clock, network):
    one, two, front = network.listen("one", 1), network.listen("two", 1), network.listen("front", 1)
    gateway = Gateway(RoutingTable((Backend.at("one", 1),)), dial=network.dial)
    async with hosted(says("one"), listener=one), hosted(says("two"), listener=two):
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.serve, [front])
            async with open_session(front.url, dial=network.dial) as early:
                assert await early.ask("hi") == "one: hi"
                gateway.update(RoutingTable((Backend.at("two", 1),)))
                async with open_session(front.url, dial=network.dial) as late:
                    assert await late.ask("hi") == "two: hi"
                    assert await early.ask("still?") == "one: still?"
                    assert {c.instance_id for c in gateway.connections()} == {"one:1", "two:1"}
            nursery.cancel_scope.cancel()


async def test_rules_choose_and_say_why(autojump_clock, network):
    condition = RoutingCondition("query.lang", ConditionOperator.EQUALS, "zh")
    table = RoutingTable(
        (Backend.at("zh", 1, "chinese"), Backend.at("en", 1, "english")),
        (RoutingRule("zh", [condition], target_services=["chinese"]), RoutingRule("rest", priority=500)),
    )
    gateway = Gateway(table)
    decision = gateway.route(ClientRequest("/?lang=zh", "192.0.2.1", 1))
    assert (decision.rule, decision.chosen) == ("zh", "zh:1")
    assert gateway.route(ClientRequest("/", "192.0.2.1", 1)).rule == "rest"
    assert gateway.connections() == ()


async def test_backends_that_are_all_gone_are_the_clients_news_and_not_the_applications(
    autojump_clock, network
):
    front = network.listen("front", 1)
    gateway = Gateway(RoutingTable((Backend.at("gone", 1),)), dial=network.dial)
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.serve, [front])
        with pytest.raises(AgentUnreachable, match="refused"):
            async with open_session(front.url, dial=network.dial):
                pass
        with pytest.raises(ConnectionNotFound):
            gateway.disconnect("con_1")
        nursery.cancel_scope.cancel()


async def test_cancelling_the_application_tells_each_client_and_the_listeners_are_still_its_own(
    autojump_clock, network
):
    one, front = network.listen("one", 1), network.listen("front", 1)
    gateway = Gateway(RoutingTable((Backend.at("one", 1),)), dial=network.dial)
    async with hosted(says("one"), listener=one), trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            await nursery.start(gateway.serve, [front])
            client = await outer.start(converse, front, network)
            nursery.cancel_scope.cancel()
        await client.gone.wait()
        assert client.code == 1001
        assert gateway.connections() == ()
        outer.start_soon(gateway.serve, [front])  # once more, on the same listener
        async with bare_client(front.url, dial=network.dial) as again:
            assert (await again.ask("hi"))["content"] == "one: hi"
        outer.cancel_scope.cancel()


class Leaving:
    code = 0

    def __init__(self):
        self.gone = trio.Event()


async def converse(front, network, *, task_status):
    left = Leaving()
    async with bare_client(front.url, dial=network.dial) as client:
        await client.ask("hi")
        task_status.started(left)
        with pytest.raises(trio.EndOfChannel):
            while True:
                await client.receive()
        left.code = client.websocket.closed.code
        left.gone.set()


async def test_clients_and_instances_may_be_at_unix_sockets(tmp_path, network):
    async def dial(host, port):
        return await trio.open_unix_socket(tmp_path / host)

    async def unix_listener(name):
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(os.fspath(tmp_path / name))
        sock.listen()
        return trio.SocketListener(sock)

    instance, front = network.listen("x", 1), await unix_listener("front")
    gateway = Gateway(RoutingTable((Backend.at("x", 1),)), dial=network.dial)
    with trio.fail_after(20):
        async with hosted(says("one"), listener=instance), trio.open_nursery() as nursery:
            await nursery.start(gateway.serve, [front])
            async with open_session("ws://front", dial=dial) as session:
                assert await session.ask("hi") == "one: hi"
            nursery.cancel_scope.cancel()
    await front.aclose()
