"""Who may ask over TCP: tokens, their scopes, and what holds without any."""

from __future__ import annotations

import ssl
from functools import partial

import httpx2
import pytest
import trio
import trustme

from agentmgr.api import serve_api
from agentmgr.client import ManagerClient
from agentmgr.errors import InvalidRequest, NameTaken, TokenNotFound
from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig, TokenPolicy
from agentmgr.proxy.certificate import Certificate


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_once_there_is_a_token_nobody_asks_without_one(
    http: httpx2.AsyncClient, url: str, manager: AgentManager
) -> None:
    assert (await http.get("/services")).status_code == 200
    _, key = await manager.create_token("admin", ["admin"])
    for headers in ({}, bearer("agm_wrong"), {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}):
        response = await http.get("/services", headers=headers)
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized"), headers
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert (await http.get("/services", headers=bearer(key))).status_code == 200
    assert (await http.get("/nowhere")).status_code == 401, "what is not there is nobody's business"
    async with httpx2.AsyncClient(base_url=url, timeout=60) as root:
        for path in ("/health", "/docs", "/openapi.json"):
            assert (await root.get(path)).status_code == 200, "needs no token"
        assert (await root.get("/metrics")).status_code == 401
    await manager.delete_token("admin")
    assert (await http.get("/services", headers=bearer(key))).status_code == 401
    assert (await http.get("/services")).status_code == 401, "its deletion opens nothing"
    await manager.require_tokens(api=False)
    assert (await http.get("/services")).status_code == 200


async def test_an_administrator_says_whether_tokens_are_asked_for(
    http: httpx2.AsyncClient, client: ManagerClient, manager: AgentManager
) -> None:
    assert (await http.get("/token-policy")).json() == {"api": False, "gateway": False}
    _, reader = await client.create_token("reader", ["read"])
    _, admin = await client.create_token("admin", ["admin"])
    asked = await http.get("/token-policy", headers=bearer(reader))
    assert (asked.status_code, asked.json()["code"]) == (403, "forbidden")
    assert (await http.get("/token-policy", headers=bearer(admin))).json() == {"api": True, "gateway": False}
    changed = await http.patch("/token-policy", json={"gateway": True}, headers=bearer(admin))
    assert changed.json() == {"api": True, "gateway": True}
    assert (await client.get_info())["tokens_required"] == {"api": True, "gateway": True}
    assert await client.require_tokens(api=False) == manager.get_token_policy()
    assert (await http.get("/services")).status_code == 200
    assert [e.kind for e in await manager.get_events()].count("token.policy_changed") == 2


async def test_of_two_first_tokens_at_once_each_closes_its_door(manager: AgentManager) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(manager.create_token, "app", ["connect"])
        nursery.start_soon(manager.create_token, "reader", ["read"])
    assert manager.get_token_policy() == TokenPolicy(api=True, gateway=True)
    assert await manager._live().store.token_policy() == TokenPolicy(api=True, gateway=True)


async def test_a_token_opens_what_its_scopes_say(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    keys = {}
    for name, scopes in (("reader", ["read"]), ("client", ["connect:x"]), ("admin", ["admin"])):
        _, keys[name] = await manager.create_token(name, scopes)
    body = {"name": "x", "agent_factory_path": agent_file}

    async def statuses(name: str) -> tuple[int, int, int]:
        headers = bearer(keys[name])
        reading = await http.get("/services", headers=headers)
        writing = await http.post("/services", json=body, headers=headers)
        tokens = await http.get("/tokens", headers=headers)
        return reading.status_code, writing.status_code, tokens.status_code

    assert await statuses("reader") == (200, 403, 403)
    assert await statuses("client") == (403, 403, 403)
    assert await statuses("admin") == (200, 201, 200)


async def test_an_expired_token_opens_nothing(http: httpx2.AsyncClient, manager: AgentManager) -> None:
    _, key = await manager.create_token("short", ["admin"], expires_in_days=1e-9)
    assert (await http.get("/services", headers=bearer(key))).status_code == 401
    assert (await http.get("/services")).status_code == 401


async def test_a_key_is_shown_once_and_kept_nowhere(http: httpx2.AsyncClient, manager: AgentManager) -> None:
    response = await http.post("/tokens", json={"name": "dash", "scopes": ["admin"]})
    assert response.status_code == 201
    key = response.json()["key"]
    headers = bearer(key)
    listed = await http.get("/tokens", headers=headers)
    assert [token["name"] for token in listed.json()["items"]] == ["dash"]
    await manager._live().store.flush()
    for text in (listed.text, (await http.get("/events?since=0&follow=false", headers=headers)).text):
        assert key not in text
        assert "digest" not in text
    files = [manager.paths.database, *manager.paths.database.parent.glob("test.db-*")]
    assert not any(key.encode() in file.read_bytes() for file in files)
    assert (await http.delete("/tokens/dash", headers=headers)).status_code == 204
    assert (await http.get("/tokens", headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["connect:a b"]}, "scopes"),
        ({"name": "a b", "scopes": ["read"]}, "name"),
        ({"name": "x"}, "scopes"),
    ],
)
async def test_a_bad_token_is_refused_by_the_field(
    http: httpx2.AsyncClient, body: dict[str, object], path: str
) -> None:
    response = await http.post("/tokens", json=body)
    assert response.status_code == 400
    assert path in [error["path"] for error in response.json()["errors"]]


async def test_who_may_connect_may_make_tickets_for_that(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    for name in ("one", "two"):
        await manager.register_service(name, agent_file)
    made = await http.post("/tickets", headers={"Content-Type": "application/json"})
    assert made.status_code == 201, "no token is needed while there are none"
    assert made.json().keys() == {"ticket", "expires_at"}
    scopes = {"admin": "admin", "all": "connect", "of-one": "connect:one", "reader": "read"}
    keys = {name: (await manager.create_token(name, [scope]))[1] for name, scope in scopes.items()}

    async def statuses(name: str) -> list[int]:
        headers = bearer(keys[name])
        bodies = ({}, {"service": "one"}, {"service": "two"})
        return [(await http.post("/tickets", json=body, headers=headers)).status_code for body in bodies]

    assert await statuses("admin") == [201, 201, 201]
    assert await statuses("all") == [201, 201, 201]
    assert await statuses("of-one") == [201, 201, 403]
    assert await statuses("reader") == [403, 403, 403]
    assert (await http.post("/tickets", json={})).status_code == 401
    admin = bearer(keys["admin"])
    for body, status in (({"service": "three"}, 404), ({"expires_in_s": 301}, 400), ({"life": 1}, 400)):
        assert (await http.post("/tickets", json=body, headers=admin)).status_code == status


async def test_tokens_outlive_the_manager(manager: AgentManager, client: ManagerClient) -> None:
    token, key = await client.create_token("one", ["read", "connect"], expires_in_days=5)
    assert [t.name for t in await client.list_tokens()] == ["one"]
    with pytest.raises(NameTaken):
        await client.create_token("one", ["read"])
    stored = await manager._live().store.tokens()
    assert [(t.token_id, t.scopes) for t in stored] == [(token.token_id, token.scopes)]
    found = manager.find_token(key)
    assert found is not None
    assert found.name == "one"
    await client.delete_token("one")
    with pytest.raises(TokenNotFound):
        await client.delete_token("one")


async def test_others_are_served_with_tokens_only(manager: AgentManager, nursery: trio.Nursery) -> None:
    with pytest.raises(InvalidRequest, match="tokens create"):
        await serve_api(manager, host="0.0.0.0", port=0)
    _, key = await manager.create_token("admin", ["admin"])
    port = await nursery.start(partial(serve_api, manager, host="0.0.0.0", port=0))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60) as http:
        named = {**bearer(key), "Host": "agents.example"}
        assert (await http.get("/info", headers=named)).status_code == 200
        assert (await http.get("/info")).status_code == 401
        await manager.delete_token("admin")
        assert (await http.get("/info")).status_code == 401, "it does not open up when the last one goes"


async def test_with_a_certificate_it_speaks_https(manager: AgentManager, nursery: trio.Nursery) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    with issued.private_key_and_cert_chain_pem.tempfile() as pem:
        port = await nursery.start(partial(serve_api, manager, port=0, certificate=Certificate(pem)))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        async with httpx2.AsyncClient(verify=context, timeout=60) as http:
            assert (await http.get(f"https://localhost:{port}/health")).status_code == 200
        stream = await trio.open_tcp_stream("localhost", port)
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with trio.fail_after(60):
            assert b"healthy" not in await stream.receive_some(1000)
        await stream.aclose()


@pytest.fixture
async def slow_service(manager: AgentManager) -> str:
    """One whose start takes until the test's end."""
    command = ("/bin/sh", "-c", "echo started; sleep 600")
    await manager.register_service("slow", command=command, config=ServiceConfig(startup_timeout=600))
    return "slow"


async def opened(http: httpx2.AsyncClient, key: str, path: str, ended: list[str]) -> None:
    """Follows a stream until it ends."""
    async with http.stream("GET", path, headers=bearer(key)) as response:
        assert response.status_code == 200
        async for _ in response.aiter_bytes():
            pass
    ended.append(path)


def held(manager: AgentManager, key: str, count: int) -> bool:
    token = manager.find_token(key)
    assert token is not None
    return len(manager._live().tokens._opened.get(token.token_id, ())) == count


@pytest.mark.parametrize("leave_open", [False, True])
async def test_what_a_token_has_opened_ends_with_it(
    http: httpx2.AsyncClient, manager: AgentManager, slow_service: str, leave_open: bool
) -> None:
    _, other = await manager.create_token("other", ["admin"])
    _, key = await manager.create_token("leaked", ["admin"])
    streams = ("/events", f"/services/{slow_service}/logs?follow=true")
    ended: list[str] = []
    others_ended: list[str] = []
    async with trio.open_nursery() as nursery:
        for path in streams:
            nursery.start_soon(opened, http, key, path, ended)
            nursery.start_soon(opened, http, other, path, others_ended)

        async def start_and_wait() -> None:
            answer = await http.post(f"/services/{slow_service}/start?wait=true", headers=bearer(key))
            ended.append(answer.json()["code"])

        nursery.start_soon(start_and_wait)
        with trio.fail_after(60):
            while not held(manager, key, 3):  # noqa: ASYNC110
                await trio.sleep(0.01)
        answer = await http.delete(
            "/tokens/leaked", params={"leave_open": str(leave_open).lower()}, headers=bearer(key)
        )
        assert answer.status_code == 204, "though it is its own"
        assert (await http.get("/info", headers=bearer(key))).status_code == 401
        if leave_open:
            await trio.sleep(0.2)
            assert ended == []
        else:
            with trio.fail_after(60):
                while len(ended) < 3:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert sorted(ended) == sorted([*streams, "unauthorized"])
        assert others_ended == []
        nursery.cancel_scope.cancel()


async def test_what_a_token_has_opened_ends_when_it_expires(
    http: httpx2.AsyncClient, manager: AgentManager
) -> None:
    _, key = await manager.create_token("short", ["read"], expires_in_days=1.5 / 86400)
    ended: list[str] = []
    with trio.fail_after(60):
        await opened(http, key, "/events", ended)
    assert ended == ["/events"]
