"""The manager and the API of the API's own tests: the console is served by the same server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.api.conftest import manager, settings, url

__all__ = ["http", "manager", "settings", "url"]


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        yield client
