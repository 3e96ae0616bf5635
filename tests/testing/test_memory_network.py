"""The network within a test: it carries what a real one does, and breaks as told."""

from contextlib import asynccontextmanager

import pytest
import trio

from agentmgr import Backend, Gateway, RoutingTable
from agentmgr.client import open_session
from agentmgr.testing import bare_client, hosted, memory_network


async def counter(message):
    """Counts so far."""
    for number in range(int(message)):
        yield f"{number} "


def counted(count):
    return "".join(f"{number} " for number in range(count))


@pytest.fixture
async def network():
    async with memory_network() as network:
        yield network


@asynccontextmanager
async def connected(listener):
    """The two ends of a connection there."""
    near = await listener.connect()
    far = await listener.accept()
    async with near, far:
        yield near, far


async def test_it_carries_bytes_and_their_end_both_ways(autojump_clock, network):
    async with connected(network.listen("a", 1)) as (near, far):
        await near.send_all(b"there")
        await near.send_eof()
        assert await far.receive_some() == b"there"
        assert await far.receive_some() == b""
        await far.send_all(b"and back")
        await far.aclose()
        assert await near.receive_some() == b"and back"
        assert await near.receive_some() == b""


async def test_who_does_not_listen_refuses_and_a_place_is_taken_once(autojump_clock, network):
    network.listen("a", 1)
    with pytest.raises(ConnectionRefusedError):
        await network.dial("a", 2)
    with pytest.raises(OSError, match="in use"):
        network.listen("a", 1)


async def test_it_refuses_so_often_and_then_no_more(autojump_clock, network):
    listener = network.listen("a", 1)
    listener.refuse_next(2)
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            await network.dial("a", 1)
    async with connected(listener):
        pass


async def test_a_cut_breaks_what_is_connected_and_nothing_later(autojump_clock, network):
    listener = network.listen("a", 1)
    async with connected(listener) as (near, far):
        listener.cut()
        assert await near.receive_some() == await far.receive_some() == b""
    async with connected(listener) as (near, far):
        await far.send_all(b"x")
        assert await near.receive_some() == b"x"


async def test_a_cut_after_so_many_bytes_lets_through_exactly_those(autojump_clock, network):
    listener = network.listen("a", 1)
    async with connected(listener) as (near, far):
        listener.cut_after(5)
        await near.send_all(b"what goes there does not count")
        await far.send_all(b"123")
        assert await near.receive_some() == b"123"
        await far.send_all(b"456")
        assert await near.receive_some() == b"45"
        assert await near.receive_some() == b""


async def test_latency_is_time_on_the_clock(autojump_clock, network):
    listener = network.listen("a", 1)
    listener.latency_s = 60
    async with connected(listener) as (near, far):
        began = trio.current_time()
        await near.send_all(b"x")
        assert await far.receive_some() == b"x"
        assert trio.current_time() - began == pytest.approx(60)


async def test_what_hangs_loses_nothing(autojump_clock, network):
    listener = network.listen("a", 1)
    async with connected(listener) as (near, far):
        listener.hang()
        await near.send_all(b"x")
        with trio.move_on_after(3600) as patience:
            await far.receive_some()
        assert patience.cancelled_caught
        with trio.move_on_after(3600) as patience:
            await listener.connect()
        assert patience.cancelled_caught
        listener.resume()
        assert await far.receive_some() == b"x"


async def test_an_agent_a_gateway_and_a_client_without_a_port(autojump_clock, network):
    agent, front = network.listen("agent", 1), network.listen("gateway", 1)
    async with hosted(counter, listener=agent), trio.open_nursery() as nursery:
        gateway = Gateway(RoutingTable((Backend.at("agent", 1),)), dial=network.dial)
        await nursery.start(gateway.serve, [front])
        async with open_session(front.url, dial=network.dial) as session:
            assert await session.ask("3") == "0 1 2 "
            [connection] = gateway.connections()
            assert connection.client_ip == "127.0.0.1"
        async with bare_client(front.url, dial=network.dial) as client:
            assert (await client.ask("3"))["content"] == "0 1 2 "
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("leg", ["agent", "gateway"])
async def test_a_session_misses_nothing_wherever_the_way_breaks(autojump_clock, network, leg):
    agent, front = network.listen("agent", 1), network.listen("gateway", 1)
    broken = {"agent": agent, "gateway": front}[leg]
    async with hosted(counter, listener=agent), trio.open_nursery() as nursery:
        gateway = Gateway(RoutingTable((Backend.at("agent", 1),)), dial=network.dial)
        await nursery.start(gateway.serve, [front])
        breaks = []
        async with open_session(
            front.url, dial=network.dial, on_disconnect=lambda: breaks.append(1)
        ) as session:
            for size in range(0, 2000, 97):
                broken.cut_after(size)
                parts = []
                async for event in await session.send("20"):
                    if event.event == "agent.partial_answer":
                        parts.append(event.content)
                assert "".join(parts) == event.content == counted(20)
        assert len(breaks) >= 20
        nursery.cancel_scope.cancel()
