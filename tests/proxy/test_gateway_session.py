"""A session through the gateway, seen from its two ends."""

from __future__ import annotations

import gc
import time

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest

from agentmgr.websocket.head import RequestHead
from tests.proxy.conftest import connected


async def the_close(websocket: WebSocketConnection) -> None:
    with pytest.raises(ConnectionClosed):
        await websocket.get_message()


async def test_a_client_talks_to_an_instance(lab) -> None:
    async with lab.gateway(await lab.instance()) as stage:
        async with connected(stage.url) as websocket:
            await websocket.send_message("hello")
            assert await websocket.get_message() == "hello"
            (connection,) = stage.gateway.connections()
            assert connection.service_name == "echo"
            assert (connection.messages_from_client, connection.messages_to_client) == (1, 1)
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code) == ("client", 1000)
        assert stage.gateway.connections() == ()
        assert stage.gateway.active_connections(end.instance_id) == 0


async def test_nothing_of_its_request_stays_in_memory(lab) -> None:
    async with lab.gateway(await lab.instance()) as stage:
        before = [found for found in gc.get_objects() if type(found) is RequestHead]
        async with connected(stage.url) as websocket:
            await websocket.send_message("hello")
            assert await websocket.get_message() == "hello"
            after = [found for found in gc.get_objects() if type(found) is RequestHead]
            assert len(after) == len(before)


async def test_its_times_are_measured(lab) -> None:
    """The instance is slow to take the client, greets it unasked, and thinks before it answers."""
    asked = []

    async def ponder(request: WebSocketRequest) -> None:
        await trio.sleep(0.05)
        websocket = await request.accept()
        await websocket.send_message("welcome")
        asked.append(await websocket.get_message())
        await trio.sleep(0.1)
        await websocket.send_message("well")
        await websocket.send_message("that is all")
        await the_close(websocket)

    async with lab.gateway(await lab.instance(handler=ponder)) as stage:
        began = time.perf_counter()
        async with connected(stage.url) as websocket:
            opened = time.perf_counter() - began
            assert await websocket.get_message() == "welcome"
            assert stage.witness.opened[0].handshake_s is not None
            assert 0.05 <= stage.witness.opened[0].handshake_s <= opened
            began = time.perf_counter()
            await websocket.send_message("hello")
            assert await websocket.get_message() == "well"
            answered = time.perf_counter() - began
            assert await websocket.get_message() == "that is all"
        (end,) = await stage.witness.ends()
        assert end.handshake_s == stage.witness.opened[0].handshake_s
        assert end.first_byte_s is not None
        assert 0.1 <= end.first_byte_s <= answered


async def test_a_client_that_says_nothing_waits_for_no_answer(lab) -> None:
    async def greet(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        await websocket.send_message("welcome")
        await the_close(websocket)

    async with lab.gateway(await lab.instance(handler=greet)) as stage:
        async with connected(stage.url) as websocket:
            assert await websocket.get_message() == "welcome"
        (end,) = await stage.witness.ends()
        assert end.first_byte_s is None
