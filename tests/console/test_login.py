"""Logins to the console: a link that works once, a cookie, and what a page may do with it."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import attrs
import httpx2
import pytest
import trio
import trustme

from agentmgr.api import serve_api
from agentmgr.errors import TooManyTickets
from agentmgr.manager import AgentManager
from agentmgr.manager import console as console_module
from agentmgr.models import utc_now
from agentmgr.proxy.certificate import Certificate


class Page(httpx2.AsyncClient):
    """A browser with our page open: it keeps cookies, and says where the page is from."""

    def __init__(self, url: str, **details: Any) -> None:
        self.origin = url
        super().__init__(base_url=f"{url}/api/v1", timeout=60, **details)

    async def send_as_page(self, method: str, path: str, **details: Any) -> httpx2.Response:
        headers = {"Origin": self.origin, "Sec-Fetch-Site": "same-origin", "X-Agentmgr-Console": "1"}
        return await self.request(method, path, headers={**headers, **details.pop("headers", {})}, **details)

    async def log_in(self, ticket: str) -> httpx2.Response:
        return await self.send_as_page("POST", "/console/login", json={"ticket": ticket})

    async def state(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.get("/console")).json()
        return found


@pytest.fixture
async def page(url: str) -> AsyncIterator[Page]:
    async with Page(url) as page:
        yield page


def ticket(manager: AgentManager, *scopes: str, own_user: bool = False) -> str:
    return manager.console.issue(scopes or ["admin"], own_user=own_user).ticket


@asynccontextmanager
async def logged_in(manager: AgentManager, url: str, *scopes: str) -> AsyncIterator[Page]:
    async with Page(url) as page:
        assert (await page.log_in(ticket(manager, *scopes))).status_code == 204
        yield page


def cookie_of(response: httpx2.Response) -> dict[str, str]:
    [(name, morsel)] = SimpleCookie(response.headers["Set-Cookie"]).items()
    return {"name": name, "value": morsel.value} | {k: v for k, v in morsel.items() if v}


def login_names(manager: AgentManager) -> list[str]:
    return [token.name for token in manager.list_tokens() if token.is_login]


async def test_without_tokens_this_machines_user_needs_no_login(page: Page, manager: AgentManager) -> None:
    assert await page.state() == {
        "login_required": False,
        "authenticated": True,
        "scopes": ["admin", "connect", "read", "sessions"],
        "token": None,
        "version": manager.get_info()["version"],
        "database": str(manager.paths.database),
        "gateway": [],
        "gateway_tokens": False,
    }
    assert (await page.get("/console", headers={"X-Forwarded-For": "192.0.2.1"})).json()["login_required"]


async def test_with_tokens_nothing_is_said_before_the_login(page: Page, manager: AgentManager) -> None:
    await manager.create_token("admin", ["admin"])
    assert await page.state() == {
        "login_required": True,
        "authenticated": False,
        "scopes": [],
        "token": None,
        "version": None,
        "database": None,
        "gateway": [],
        "gateway_tokens": False,
    }
    refused = await page.get("/services")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")


async def test_a_ticket_is_traded_for_a_cookie(
    page: Page, url: str, manager: AgentManager, nursery: trio.Nursery
) -> None:
    await manager.create_token("admin", ["admin"])
    gateway = await nursery.start(manager.serve_proxy, "localhost", 0)
    answer = await page.log_in(ticket(manager, "read", "sessions"))
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Cache-Control"] == "no-store"
    cookie = cookie_of(answer)
    assert cookie == {
        "name": f"agentmgr_console_{url.rpartition(':')[2]}",
        "value": cookie["value"],
        "path": "/",
        "max-age": "43200",
        "httponly": True,
        "samesite": "Strict",
    }
    state = await page.state()
    shown = {name: state[name] for name in ("login_required", "authenticated", "scopes", "gateway")}
    assert [state["token"]] == login_names(manager)
    assert shown == {
        "login_required": True,
        "authenticated": True,
        "scopes": ["read", "sessions"],
        "gateway": [f"ws://localhost:{gateway}"],
    }
    assert (await page.get("/services")).status_code == 200
    # It is a token as others are, of which the key is kept nowhere.
    [login] = [token for token in manager.list_tokens() if token.is_login]
    assert login.expires_at is not None
    assert timedelta(hours=11.9) < login.expires_at - utc_now() <= timedelta(hours=12)
    assert manager.find_token(cookie["value"]) == login
    await manager._live().store.flush()
    assert cookie["value"].encode() not in manager.paths.database.read_bytes()


@pytest.mark.parametrize(
    ("scopes", "statuses"),
    [
        (["read"], {"services": 200, "tokens": 403, "register": 403, "ticket": 403}),
        (["sessions"], {"services": 403, "tokens": 403, "register": 403, "ticket": 403}),
        (["connect"], {"services": 403, "tokens": 403, "register": 403, "ticket": 201}),
        (["admin"], {"services": 200, "tokens": 200, "register": 201, "ticket": 201}),
    ],
)
async def test_a_login_opens_what_its_scopes_say(
    url: str, manager: AgentManager, scopes: list[str], statuses: dict[str, int]
) -> None:
    await manager.create_token("admin", ["admin"])
    body = {"name": "x", "command": ["/bin/true"]}
    async with logged_in(manager, url, *scopes) as page:
        assert {
            "services": (await page.get("/services")).status_code,
            "tokens": (await page.get("/tokens")).status_code,
            "register": (await page.send_as_page("POST", "/services", json=body)).status_code,
            "ticket": (await page.send_as_page("POST", "/tickets", json={})).status_code,
        } == statuses
        everything = ["admin", "connect", "read", "sessions"]
        assert (await page.state())["scopes"] == (everything if scopes == ["admin"] else scopes)


async def test_a_ticket_works_once_and_soon(
    page: Page, manager: AgentManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await manager.create_token("admin", ["admin"])
    used = ticket(manager)
    assert (await page.log_in(used)).status_code == 204
    monkeypatch.setattr(console_module, "TICKET_LIFE_S", 0.0)
    for bad in (used, ticket(manager), "agt_guessed", ""):
        answer = await page.log_in(bad)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), bad
        assert "agentmgr console" in answer.json()["detail"]
        assert "Set-Cookie" not in answer.headers
    assert len(login_names(manager)) == 1


async def test_a_ticket_in_a_browsers_command_line_is_good_for_its_user_alone(manager: AgentManager) -> None:
    for uid, good in ((os.geteuid(), True), (0, True), (54321, False), (None, False)):
        made = await manager.console.log_in(ticket(manager, own_user=True), uid)
        assert (made is not None) is good
    assert await manager.console.log_in(ticket(manager), None) is not None


async def test_a_ticket_of_ones_own_user_works_over_the_api(page: Page, manager: AgentManager) -> None:
    assert (await page.log_in(ticket(manager, own_user=True))).status_code == 204


async def test_the_tickets_are_counted(manager: AgentManager) -> None:
    for _ in range(1000):
        ticket(manager)
    with pytest.raises(TooManyTickets):
        ticket(manager)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"Origin": "https://evil.example"}, "origin_not_allowed"),
        ({"Origin": "http://localhost:1"}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
        ({"Origin": None}, "origin_not_allowed"),
        ({"Origin": None, "Sec-Fetch-Site": "cross-site"}, "origin_not_allowed"),
        ({"X-Agentmgr-Console": None}, "forbidden"),
        ({"X-Agentmgr-Console": "0"}, "forbidden"),
    ],
)
async def test_only_our_own_page_may_change_something(
    url: str, manager: AgentManager, changed: dict[str, str | None], code: str
) -> None:
    await manager.create_token("admin", ["admin"])
    async with logged_in(manager, url, "admin") as page:
        headers = {"Origin": url, "X-Agentmgr-Console": "1", **changed}
        sent = {name: value for name, value in headers.items() if value is not None}
        changes = [
            ("POST", "/services", {"name": "x", "command": ["/bin/true"]}),
            ("PATCH", "/token-policy", {"api": False}),
            ("DELETE", "/tokens/admin", None),
            ("POST", "/console/login", {"ticket": ticket(manager)}),
            ("POST", "/console/logout", None),
        ]
        for method, path, body in changes:
            answer = await page.request(method, path, json=body, headers=sent)
            assert (answer.status_code, answer.json()["code"]) == (403, code), path
            assert "Bearer" in answer.json()["detail"] or "may not use" in answer.json()["detail"]
        assert not manager.list_services()
        assert manager.get_token_policy().api
        assert (await page.get("/services")).status_code == 200, "it is logged in still"


async def test_a_page_of_another_site_reads_nothing_with_the_cookie(url: str, manager: AgentManager) -> None:
    await manager.create_token("admin", ["admin"])
    async with logged_in(manager, url, "admin") as page:
        for headers in ({"Origin": "http://localhost:1"}, {"Sec-Fetch-Site": "same-site"}):
            answer = await page.get("/services", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_bearer_token_counts_more_than_the_cookie(url: str, manager: AgentManager) -> None:
    _, reader = await manager.create_token("reader", ["read"])
    async with logged_in(manager, url, "admin") as page:
        for key, status in ((reader, 403), ("agm_wrong", 401)):
            answer = await page.get("/tokens", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status


async def test_a_login_that_is_revoked_is_over_at_once_and_so_is_what_it_follows(
    url: str, manager: AgentManager
) -> None:
    await manager.create_token("admin", ["admin"])
    async with logged_in(manager, url, "admin") as page:
        [name] = login_names(manager)
        with trio.fail_after(30):
            async with page.stream("GET", "/events") as stream:
                pieces = stream.aiter_bytes()
                assert await anext(pieces)
                await manager.delete_token(name)
                async for _ in pieces:
                    pass
        refused = await page.get("/services")
        assert refused.status_code == 401
        assert "agentmgr console" in refused.json()["detail"]
        assert not (await page.state())["authenticated"]


async def test_a_login_expires_and_is_forgotten_at_the_next(
    url: str, manager: AgentManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await manager.create_token("admin", ["admin"])
    with monkeypatch.context() as patch:
        patch.setattr(console_module, "LOGIN_LIFE_S", -1.0)
        async with logged_in(manager, url, "admin") as page:
            assert (await page.get("/services")).status_code == 401
    before = login_names(manager)
    async with logged_in(manager, url, "admin"):
        assert len(login_names(manager)) == 1
        assert not set(before) & set(login_names(manager))
    stored = await manager._live().store.tokens()
    assert [token.name for token in stored] == [token.name for token in manager.list_tokens()]


async def test_a_logout_ends_the_login(url: str, manager: AgentManager) -> None:
    await manager.create_token("admin", ["admin"])
    async with logged_in(manager, url, "admin") as page:
        key = next(iter(page.cookies.jar)).value
        answer = await page.send_as_page("POST", "/console/logout")
        assert (answer.status_code, cookie_of(answer)["max-age"]) == (204, "0")
        assert not page.cookies
        assert login_names(manager) == []
        again = await page.get("/services", headers={"Cookie": f"{cookie_of(answer)['name']}={key}"})
        assert again.status_code == 401
        assert (await page.send_as_page("POST", "/console/logout")).status_code == 204


async def test_another_login_takes_the_place_of_the_one_before(url: str, manager: AgentManager) -> None:
    async with logged_in(manager, url, "admin") as page:
        assert (await page.log_in(ticket(manager, "read"))).status_code == 204
        assert (await page.state())["scopes"] == ["read"]
    assert len(login_names(manager)) == 1


async def test_a_login_switches_no_policy_and_hides_no_first_token(url: str, manager: AgentManager) -> None:
    before = manager.get_token_policy()
    async with logged_in(manager, url, "admin", "connect"):
        assert manager.get_token_policy() == before
        assert await manager._live().store.token_policy() == before
        await manager.create_token("app", ["connect"])
    assert attrs.astuple(manager.get_token_policy()) == (True, True)


async def test_a_login_outlives_the_manager(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with AgentManager(tmp_path / "one.db") as manager:
        await manager.create_token("admin", ["admin"])
        made = await manager.console.log_in(ticket(manager), None)
        assert made is not None
    async with AgentManager(tmp_path / "one.db") as manager, trio.open_nursery() as serving:
        port = await serving.start(partial(serve_api, manager, port=0))
        async with Page(f"http://localhost:{port}") as page:
            cookie = {"Cookie": f"agentmgr_console_{port}={made[1]}"}
            assert (await page.get("/services", headers=cookie)).status_code == 200
        serving.cancel_scope.cancel()


async def test_two_managers_on_one_host_have_a_login_each(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Cookies go to all ports of a host."""
    async with AgentManager(tmp_path / "1.db") as first, AgentManager(tmp_path / "2.db") as second:
        async with trio.open_nursery() as serving:
            pages = []
            for manager in (first, second):
                await manager.create_token("admin", ["admin"])
                port = await serving.start(partial(serve_api, manager, port=0))
                pages.append(Page(f"http://localhost:{port}"))
            pages[1]._cookies = pages[0]._cookies  # one browser
            async with pages[0], pages[1]:
                for page, manager in zip(pages, (first, second), strict=True):
                    assert (await page.log_in(ticket(manager))).status_code == 204
                assert len(pages[0].cookies) == 2
                for page in pages:
                    assert (await page.get("/services")).status_code == 200
                await pages[0].send_as_page("POST", "/console/logout")
                assert [(await page.get("/services")).status_code for page in pages] == [401, 200]
            serving.cancel_scope.cancel()


async def test_over_tls_the_cookie_is_for_tls_alone(manager: AgentManager, nursery: trio.Nursery) -> None:
    authority = trustme.CA()
    await manager.create_token("admin", ["admin"])
    with authority.issue_cert("localhost").private_key_and_cert_chain_pem.tempfile() as pem:
        port = await nursery.start(partial(serve_api, manager, port=0, certificate=Certificate(pem)))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        async with Page(f"https://localhost:{port}", verify=context) as page:
            answer = await page.log_in(ticket(manager))
            assert cookie_of(answer)["secure"]
            assert (await page.get("/services")).status_code == 200


async def test_it_works_under_any_name_when_tokens_are_needed(
    manager: AgentManager, nursery: trio.Nursery
) -> None:
    """Behind a proxy that speaks TLS and passes `Host` on, or on every address of the machine."""
    await manager.create_token("admin", ["admin"])
    for host in ("localhost", "0.0.0.0"):
        port = await nursery.start(partial(serve_api, manager, host=host, port=0))
        async with Page(f"http://127.0.0.1:{port}") as page:
            page.headers["Host"] = "agents.example"
            page.origin = "https://agents.example"
            assert (await page.get(f"http://127.0.0.1:{port}/console/")).status_code == 200
            cookie = cookie_of(await page.log_in(ticket(manager)))
            assert (cookie["name"], cookie["secure"]) == ("agentmgr_console", True)
            sent = {"Cookie": f"{cookie['name']}={cookie['value']}"}
            assert (await page.get("/services", headers=sent)).status_code == 200
            made = await page.send_as_page("POST", "/tickets", json={}, headers=sent)
            assert made.status_code == 201
            evil = {**sent, "Origin": "https://evil.example"}
            assert (await page.send_as_page("POST", "/tickets", json={}, headers=evil)).status_code == 403


async def test_a_login_of_elsewhere_is_no_login_here(page: Page, manager: AgentManager) -> None:
    """As is one of which nothing is known any more: this machine's user goes on without."""
    page.cookies.set(f"agentmgr_console_{page.base_url.port}", "agm_unknown")
    assert (await page.get("/services")).status_code == 200
    assert (await page.send_as_page("POST", "/tickets", json={})).status_code == 201


@pytest.mark.parametrize("body", [{}, {"ticket": 1}, {"ticket": "x", "scopes": ["admin"]}, []])
async def test_a_bad_login_is_refused(page: Page, body: object) -> None:
    assert (await page.send_as_page("POST", "/console/login", json=body)).status_code == 400
