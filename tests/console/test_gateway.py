"""The console's page may use the gateway, wherever that is served and whatever other pages it lets in."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from agentmgr.api import serve_api
from agentmgr.manager import AgentManager
from agentmgr.settings import Settings
from tests.conditions import read_to
from tests.console.test_login import Page, ticket
from tests.proxy.conftest import upgrade

ALLOWED = "https://app.example"
REFUSED, LET_IN = 403, 503  # as there is no service


@pytest.fixture
def settings() -> Settings:
    return Settings(allowed_origins=(ALLOWED,))


async def status(port: int, origin: str, path: str = "/") -> int:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(upgrade(path, f"Origin: {origin}"))
        return int((await read_to(stream, b"\r\n\r\n")).split()[1])


async def eventually(port: int, origin: str, wanted: int) -> None:
    """A listener opens and closes at once, and the gateway hears of it a moment later."""
    with trio.fail_after(60):
        while await status(port, origin) != wanted:  # noqa: ASYNC110
            await trio.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 1])
async def test_the_page_is_let_in_while_it_is_served(
    manager: AgentManager, nursery: trio.Nursery, workers: int
) -> None:
    gateway = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=workers))
    async with trio.open_nursery() as serving:
        api = await serving.start(partial(serve_api, manager, port=0))  # after the gateway
        for host in ("localhost", "127.0.0.1", "[::1]"):
            await eventually(gateway, f"http://{host}:{api}", LET_IN)
        assert await status(gateway, ALLOWED) == LET_IN
        for origin in (f"https://localhost:{api}", "http://localhost:1", f"http://evil.example:{api}"):
            assert await status(gateway, origin) == REFUSED, origin
        serving.cancel_scope.cancel()
    await eventually(gateway, f"http://localhost:{api}", REFUSED)


async def test_the_page_is_let_in_by_a_gateway_that_begins_later(
    manager: AgentManager, nursery: trio.Nursery
) -> None:
    api = await nursery.start(partial(serve_api, manager, port=0))
    for workers in (0, 1):
        gateway = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=workers))
        assert await status(gateway, f"http://localhost:{api}") == LET_IN


@pytest.mark.parametrize("workers", [0, 1])
async def test_a_page_that_has_logged_in_gets_a_ticket_and_is_let_in_under_its_name(
    manager: AgentManager, nursery: trio.Nursery, workers: int
) -> None:
    """Under which names a browser reaches this machine, only the browser knows."""
    await manager.create_token("app", ["connect"])
    gateway = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=workers))
    api = await nursery.start(partial(serve_api, manager, host="0.0.0.0", port=0))
    name = f"http://agents.example:{api}"
    async with Page(f"http://127.0.0.1:{api}") as page:
        page.headers["Host"] = f"agents.example:{api}"
        page.origin = name
        login = await page.log_in(ticket(manager, "read", "connect"))
        cookie = {"Cookie": login.headers["Set-Cookie"].partition(";")[0]}
        assert await status(gateway, name) == REFUSED
        made = await page.send_as_page("POST", "/tickets", json={}, headers=cookie)
        assert made.status_code == 201
        assert await status(gateway, name, f"/?ticket={made.json()['ticket']}") == LET_IN
        assert await status(gateway, name, f"/?ticket={made.json()['ticket']}") == 401, "once"
        assert await status(gateway, f"http://other.example:{api}") == REFUSED


async def test_no_program_with_a_token_adds_a_page(manager: AgentManager, nursery: trio.Nursery) -> None:
    _, key = await manager.create_token("app", ["connect"])
    gateway = await nursery.start(partial(manager.serve_proxy, "localhost", 0, workers=0))
    api = await nursery.start(partial(serve_api, manager, port=0))
    async with Page(f"http://127.0.0.1:{api}") as page:
        sent = {"Authorization": f"Bearer {key}", "Origin": "https://evil.example"}
        assert (await page.post("/tickets", json={}, headers=sent)).status_code == 201
    assert await status(gateway, "https://evil.example") == REFUSED


async def test_so_many_names_are_remembered(manager: AgentManager) -> None:
    for number in range(40):
        await manager.console.visited_at(f"http://{number}.example")
    assert manager.console.origins == {f"http://{number}.example" for number in range(8, 40)}


@pytest.mark.parametrize(
    ("host", "port", "tls", "origins"),
    [
        ("agents.example", 8080, False, {"http://agents.example:8080"}),
        ("Agents.example", 443, True, {"https://agents.example"}),
        ("192.0.2.1", 80, False, {"http://192.0.2.1"}),
        ("2001:db8::1", 443, False, {"http://[2001:db8::1]:443"}),
        ("::1", 443, True, {"https://localhost", "https://127.0.0.1", "https://[::1]"}),
    ],
)
async def test_an_origin_is_as_a_browser_sends_it(
    manager: AgentManager, host: str, port: int, tls: bool, origins: set[str]
) -> None:
    with manager.listening("api", host, port, tls=tls):
        assert manager.console.origins == origins
    assert not manager.console.origins
