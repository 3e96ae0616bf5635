"""Tickets: each opens the gateway once, soon, and to no more than its token does at that moment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from agentmgr.errors import InvalidRequest, ServiceNotFound, TooManyTickets
from agentmgr.manager import AgentManager
from agentmgr.manager.gateway_access import Claim
from agentmgr.manager.tickets import Tickets
from tests.conditions import heard

SOON, LATER = Claim("tok_1", None, expires_at=30.0), Claim("tok_1", "echo", expires_at=60.0)


def test_one_is_good_once_and_until_it_expires() -> None:
    tickets = Tickets()
    used, late = tickets.issue(LATER, 0.0), tickets.issue(SOON, 0.0)
    assert tickets.redeem("agt_guessed", 0.0) is None
    assert [tickets.redeem(used, 29.9) for _ in range(2)] == [LATER, None]
    assert tickets.redeem(late, 30.0) is None
    assert tickets.redeem(late, 0.0) is None, "a ticket that came too late is gone too"


def test_those_of_one_token_are_bounded_and_do_not_crowd_out_the_others() -> None:
    tickets = Tickets()
    issued = [tickets.issue(SOON, 0.0) for _ in range(1000)]
    with pytest.raises(TooManyTickets):
        tickets.issue(SOON, 29.9)
    tickets.issue(Claim(None, None, 30.0), 29.9)
    assert tickets.redeem(issued[500], 29.9) == SOON
    tickets.issue(LATER, 29.9)  # in the place that came free
    for _ in range(999):
        tickets.issue(LATER, 30.0)  # the others have expired
    with pytest.raises(TooManyTickets):
        tickets.issue(LATER, 30.0)


def test_nobody_finds_a_ticket_in_memory() -> None:
    tickets = Tickets()
    ticket = tickets.issue(SOON, 0.0)
    assert ticket not in repr(vars(tickets))
    assert tickets.redeem("agt_\udcff", 0.0) is None


async def status(url: str) -> int:
    """Of the handshake."""

    def ask() -> int:
        try:
            with connect(url) as client:
                client.send("hello")
                assert heard(client) == "echo: hello"
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    return await trio.to_thread.run_sync(ask)


async def test_through_the_gateway(
    db: Path, agent_file: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentmgr")
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        for name in ("one", "two"):
            await manager.register_service(name, agent_file(), auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        one, two = f"ws://localhost:{port}/services/one", f"ws://localhost:{port}/services/two"
        token, _ = await manager.create_token("page", ["connect:one", "connect:two"])
        only_one, _ = await manager.create_token("only-one", ["connect:one"])

        # One that was made without a token opens everything, unless it names a service.
        free, named = manager.create_ticket(), manager.create_ticket("one")
        assert await status(f"{two}?ticket={free.ticket}") == 101
        assert await status(f"{two}?ticket={named.ticket}") == 403
        assert await status(f"{two}?ticket={named.ticket}") == 401, "a refusal used it up too"

        for ref, held, expected in (
            (None, token, [101, 101]),
            ("one", token, [101, 403]),
            (None, only_one, [101, 403]),
            ("two", only_one, [401, 401]),
        ):
            tickets = [manager.issue_ticket(held, ref, expires_in_s=30).ticket for _ in range(2)]
            assert [
                await status(f"{url}?ticket={ticket}")
                for url, ticket in zip((one, two), tickets, strict=True)
            ] == expected

        orphan = manager.issue_ticket(token, None, expires_in_s=30).ticket
        await manager.delete_token("page")
        assert await status(f"{one}?ticket={orphan}") == 401, "its token was revoked"

        with pytest.raises(ServiceNotFound):
            manager.create_ticket("nobody")
        for life in (0.0, -1.0, 301.0, float("nan")):
            with pytest.raises(InvalidRequest):
                manager.create_ticket(expires_in_s=life)
        nursery.cancel_scope.cancel()
    for secret in (free.ticket, named.ticket, orphan):
        assert secret not in caplog.text
    assert free.ticket not in repr(free)


async def test_one_that_the_gateway_does_not_ask_for_is_used_up_all_the_same(
    db: Path, agent_file: Callable[..., str]
) -> None:
    async with AgentManager(db) as manager, trio.open_nursery() as nursery:
        await manager.register_service("one", agent_file(), auto_start=True)
        port = await nursery.start(manager.serve_proxy, "localhost", 0)
        ticket = manager.create_ticket().ticket
        assert await status(f"ws://localhost:{port}/?ticket={ticket}") == 101
        await manager.create_token("page", ["connect"])
        assert await status(f"ws://localhost:{port}/?ticket={ticket}") == 401
        nursery.cancel_scope.cancel()
