"""Instances of another node, through its gate: as if they were here, and for gateways of the cluster only."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Lab, connected
from .gates import Cluster, crossing


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


async def test_a_session_across(lab: Lab, cluster: Cluster) -> None:
    async with crossing(lab, cluster, await lab.instance()) as c:
        async with connected(c.near.url) as websocket:
            for size in (1, 100, 16_384, 500_000):
                await websocket.send_message("x" * size)
                assert await websocket.get_message() == "x" * size
        (end,) = await c.near.witness.ends()
        assert (end.ended_by, end.code) == ("client", 1000)
