"""Who may use the gateway, once there are tokens for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agentmgr.manager import AgentManager


async def status(url: str, key: str | None) -> int:
    """Of the handshake."""
    return await trio.to_thread.run_sync(
        _status, url, {} if key is None else {"Authorization": f"Bearer {key}"}
    )


def _status(url: str, headers: dict[str, str]) -> int:
    # Not trio-websocket's client: it leaves its socket open when it is refused.
    try:
        with connect(url, additional_headers=headers) as client:
            client.send("hello")
            assert client.recv(timeout=60) == "echo: hello"
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


async def test_the_gateway_is_open_until_there_is_a_token_for_it(
    db: Path, agent_file: Callable[..., str]
) -> None:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        for name in ("one", "two"):
            await manager.register_service(name, agent_file(), auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        one, two = f"ws://localhost:{port}/services/one", f"ws://localhost:{port}/services/two"

        _, reads = await manager.create_token("reads", ["read"])
        assert await status(one, None) == 101  # that token is for the API
        _, connects = await manager.create_token("connects", ["connect"])
        _, for_one = await manager.create_token("for-one", ["connect:one"])
        _, admin = await manager.create_token("admin", ["admin"])

        assert [await status(one, key) for key in (None, "wrong", reads)] == [401, 401, 401]
        assert [await status(one, key) for key in (connects, for_one, admin)] == [101, 101, 101]
        assert [await status(two, key) for key in (connects, for_one, admin)] == [101, 403, 101]

        for name in ("connects", "for-one"):
            await manager.delete_token(name)
        assert await status(one, None) == 101
        nursery.cancel_scope.cancel()


async def test_a_gateway_that_others_can_reach_warns_unless_it_asks_for_tokens(
    db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AgentManager(db) as manager:
        for scopes, warned in ((["read"], True), (["connect"], False)):
            await manager.create_token(scopes[0], scopes)
            caplog.clear()
            async with trio.open_nursery() as nursery:
                await nursery.start(manager.serve_proxy, "0.0.0.0", 0)
                nursery.cancel_scope.cancel()
            assert ("is open to everybody" in caplog.text) == warned
