"""A manager with its API and a page: real servers, and clients that are as a browser is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio

from agentmgr.api import serve_api
from agentmgr.manager import AgentManager
from agentmgr.settings import Settings


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
async def manager(tmp_path: Path, settings: Settings) -> AsyncIterator[AgentManager]:
    async with AgentManager(tmp_path / "test.db", settings=settings) as manager:
        yield manager


@pytest.fixture
async def url(manager: AgentManager, nursery: trio.Nursery) -> str:
    port = await nursery.start(partial(serve_api, manager, port=0))
    return f"http://localhost:{port}"


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        yield client
