"""A manager, its API on a free port, and clients of it: all real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio

from agentmgr.api import serve_api, serve_control
from agentmgr.client import ManagerClient
from agentmgr.manager import AgentManager
from agentmgr.settings import Settings

ECHO = """
def create_agent():
    async def answer(message):
        print("got", message)
        return f"echo: {message}"
    return answer
"""


@pytest.fixture
def agent_file(tmp_path: Path) -> str:
    path = tmp_path / "echo_agent.py"
    path.write_text(ECHO)
    return str(path)


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
async def manager(tmp_path: Path, settings: Settings, fork_servers_fork: None) -> AsyncIterator[AgentManager]:
    async with AgentManager(tmp_path / "test.db", settings=settings) as manager:
        yield manager


@pytest.fixture
async def url(manager: AgentManager, nursery: trio.Nursery) -> str:
    port = await nursery.start(partial(serve_api, manager, port=0))
    return f"http://localhost:{port}"


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=f"{url}/api/v1", timeout=60) as client:
        yield client


@pytest.fixture
async def control(manager: AgentManager, nursery: trio.Nursery) -> Path:
    path = manager.paths.control_socket
    await nursery.start(serve_control, manager, path)
    return path


@pytest.fixture
async def client(control: Path) -> AsyncIterator[ManagerClient]:
    async with ManagerClient(control) as client:
        yield client
