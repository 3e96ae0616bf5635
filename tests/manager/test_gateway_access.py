"""Who may use the gateway, once there are tokens for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agentmgr.manager import AgentManager
from agentmgr.models import TokenPolicy


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


async def test_the_gateway_is_open_until_the_first_token_for_it_is_made(
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
        assert [await status(one, key) for key in (None, connects, admin)] == [401, 401, 101]
        await manager.require_tokens(gateway=False)
        assert await status(one, None) == 101
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ending", ["deleted", "expired"])
async def test_a_gateway_whose_last_token_is_gone_stays_closed_over_restarts(
    db: Path, agent_file: Callable[..., str], ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AgentManager(db, supervise=False) as manager:
        days = 1e-9 if ending == "expired" else None
        _, key = await manager.create_token("app", ["connect"], expires_in_days=days)
        if ending == "deleted":
            await manager.delete_token("app")
            assert "the gateway refuses every client" in caplog.text
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        await manager.register_service("one", agent_file(), auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        for shown in (None, key):
            assert await status(f"ws://localhost:{port}/services/one", shown) == 401
        nursery.cancel_scope.cancel()


async def test_what_was_switched_off_by_name_stays_off_until_there_is_a_first_token_again(db: Path) -> None:
    async with AgentManager(db, supervise=False) as manager:
        await manager.create_token("app", ["connect"])
        await manager.require_tokens(api=False, gateway=False)
        await manager.create_token("second", ["connect", "read"])
        assert manager.get_token_policy() == TokenPolicy()
        for name in ("app", "second"):
            await manager.delete_token(name)
        await manager.create_token("third", ["connect"])
        assert manager.get_token_policy() == TokenPolicy(api=True, gateway=True)


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
