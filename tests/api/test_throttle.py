"""One address gets its share of the API and no more; whoever is the user of this machine has a socket."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio

from agentmgr.api import connection, serve_api
from agentmgr.api.throttle import REQUESTS_AT_ONCE
from agentmgr.client import ManagerClient
from agentmgr.manager import AgentManager
from agentmgr.settings import Settings
from tests.conditions import read_to


@pytest.fixture
def settings() -> Settings:
    return Settings(api_rate_limit=0.01)


async def test_who_asks_too_often_is_told_when_to_come_back(http: httpx2.AsyncClient, url: str) -> None:
    assert (await http.get("/info")).status_code == 200
    refused = await http.get("/info")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["X-Request-Id"]


async def test_the_socket_has_no_limit(client: ManagerClient) -> None:
    for _ in range(20):
        await client.get_info()


async def test_another_address_has_a_share_of_its_own(http: httpx2.AsyncClient, url: str) -> None:
    for _ in range(2):
        await http.get("/info")
    transport = httpx2.AsyncHTTPTransport(local_address="127.0.0.2")
    base = url.replace("localhost", "127.0.0.1")
    async with httpx2.AsyncClient(base_url=base, transport=transport, timeout=60) as other:
        assert (await other.get("/health")).status_code == 200


async def test_another_user_of_the_same_address_has_a_share_of_its_own(
    http: httpx2.AsyncClient, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as strangers:
        strangers.setattr(connection, "peer_uid", lambda sock: os.geteuid() + 1)
        async with httpx2.AsyncClient(base_url=url, timeout=60) as other:
            assert [(await other.get("/health")).status_code for _ in range(2)] == [200, 429]
    assert (await http.get("/info")).status_code == 200


async def test_streams_count_as_long_as_they_are_followed(tmp_path: Path, nursery: trio.Nursery) -> None:
    settings = Settings(api_rate_limit=0)
    async with AgentManager(tmp_path / "other.db", settings=settings) as manager, trio.open_nursery() as mine:
        port = await mine.start(partial(serve_api, manager, port=0))
        ask = b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        streams = []
        for _ in range(REQUESTS_AT_ONCE):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(ask)
            assert b"200" in await read_to(stream, b"\r\n")
            streams.append(stream)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            assert (await http.get("/health")).status_code == 429
            await streams.pop().aclose()
            with trio.fail_after(60):
                while (await http.get("/health")).status_code == 429:
                    pass
        for stream in streams:
            await trio.aclose_forcefully(stream)
        mine.cancel_scope.cancel()
