"""Who may use the gateway, once there are tokens for it."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig, TokenPolicy
from tests.conditions import heard


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
            assert heard(client) == "echo: hello"
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
            assert ("is open to all who" in caplog.text) == warned


async def _closed(client: ClientConnection) -> int | None:
    """The close code that the client sees; None: it is open."""

    def wait() -> int | None:
        try:
            said = client.recv(timeout=5)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006
        except TimeoutError:
            return None
        raise AssertionError(f"open, and says {said!r}")

    return await trio.to_thread.run_sync(wait)


async def _echo(client: ClientConnection) -> None:
    def ask() -> None:
        client.send("hello")
        assert heard(client) == "echo: hello"

    await trio.to_thread.run_sync(ask)


async def _open(stack: AsyncExitStack, url: str, key: str | None) -> ClientConnection:
    """A connection that is closed with the stack, in a thread as all of its work."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    client = await trio.to_thread.run_sync(partial(connect, url, additional_headers=headers))
    stack.push_async_callback(trio.to_thread.run_sync, client.__exit__, None, None, None)
    return client.__enter__()


@pytest.mark.parametrize("workers", [0, 1], ids=["in this process", "in a worker"])
async def test_what_a_token_let_in_ends_with_it(
    db: Path, agent_file: Callable[..., str], workers: int
) -> None:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        await manager.register_service("one", agent_file(), auto_start=True)
        port = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=workers))
        url = f"ws://localhost:{port}/services/one"
        async with AsyncExitStack() as stack:

            async def opened(query: str = "", key: str | None = None) -> ClientConnection:
                client = await _open(stack, url + query, key)
                await _echo(client)
                return client

            without = await opened()
            leaked, key = await manager.create_token("leaked", ["connect"])
            _, left_key = await manager.create_token("left", ["connect"])
            _, short_key = await manager.create_token("short", ["connect"], expires_in_days=3 / 86400)
            by_key, left, short = (
                await opened(key=key),
                await opened(key=left_key),
                await opened(key=short_key),
            )
            tickets = [manager.issue_ticket(leaked, None, expires_in_s=60).ticket for _ in range(2)]
            by_ticket = await opened(f"?ticket={tickets[0]}")

            await manager.delete_token("leaked")
            assert [await _closed(client) for client in (by_key, by_ticket)] == [1008, 1008]
            assert await status(url + f"?ticket={tickets[1]}", None) == 401
            await manager.delete_token("left", leave_open=True)
            assert await status(url, left_key) == 401
            await manager.create_token("another", ["connect"])  # what was left open stays so
            assert await _closed(short) == 1008, "it has expired"
            for client in (without, left):
                await _echo(client)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ending", ["revoked", "expired"])
async def test_who_waits_for_a_session_is_refused_when_the_token_ends(
    db: Path, agent_file: Callable[..., str], ending: str
) -> None:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        config = ServiceConfig(max_sessions=1)
        await manager.register_service("one", agent_file(), config=config, auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        url = f"ws://localhost:{port}/services/one"
        days = 1 / 86400 if ending == "expired" else None
        _, key = await manager.create_token("first", ["connect"])
        _, other = await manager.create_token("leaked", ["connect"], expires_in_days=days)
        async with AsyncExitStack() as stack:
            await _open(stack, url, key)
            refused: list[int] = []

            async def wait() -> None:
                refused.append(await status(url, other))

            async with trio.open_nursery() as waiting:
                waiting.start_soon(wait)
                if ending == "revoked":
                    while not manager._live().gateway.lobby._waiting:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    await manager.delete_token("leaked")
            assert refused == [401]
        nursery.cancel_scope.cancel()
