"""A session through the gateway, seen from its two ends."""

from __future__ import annotations

from trio_websocket import open_websocket_url


async def test_a_client_talks_to_an_instance(lab) -> None:
    async with lab.gateway(await lab.instance()) as stage:
        async with open_websocket_url(stage.url) as websocket:
            await websocket.send_message("hello")
            assert await websocket.get_message() == "hello"
            (connection,) = stage.gateway.connections()
            assert connection.service_name == "echo"
            assert (connection.messages_from_client, connection.messages_to_client) == (1, 1)
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code) == ("client", 1000)
        assert stage.gateway.connections() == ()
        assert stage.gateway.active_sessions(end.instance_id) == 0
