"""When the gateway gets another table."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from agentmgr.core.routing import RoutingTable
from agentmgr.manager.control_plane import ControlPlane
from agentmgr.manager.tokens import Tokens
from agentmgr.models import DesiredStatus, ServiceConfig, ServiceSpec
from agentmgr.process.ownership import ManagerLock
from agentmgr.process.paths import RuntimePaths
from agentmgr.settings import Settings
from agentmgr.testing.memory_store import MemoryStore

ASLEEP = ServiceConfig(agent_factory_path="agent.py", start="on-demand")


@asynccontextmanager
async def plane_with(services: int, directory: Path) -> AsyncIterator[ControlPlane]:
    """One that publishes, with a backend for each of these services."""
    store, paths = MemoryStore(), RuntimePaths.of(directory / "agents.db")
    for n in range(services):
        await store.add_service(ServiceSpec(f"s{n}", ASLEEP, desired_status=DesiredStatus.RUNNING))
    async with trio.open_nursery() as nursery:
        plane = ControlPlane(
            store, await store.load(), await Tokens.load(store), ManagerLock(paths), nursery, Settings(),
            paths, supervises=False,
        )  # fmt: skip
        nursery.start_soon(plane.publisher.run)
        yield plane
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("services", "tables"), [(1, 101), (390, 7)])
async def test_large_tables_are_made_less_often_and_published_waits_for_the_one_with_the_change(
    services: int, tables: int, tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plane_with(services, tmp_path) as plane:
        published: list[tuple[float, RoutingTable]] = []
        monkeypatch.setattr(
            plane.worker_manager, "publish", lambda table: published.append((trio.current_time(), table))
        )
        begin = trio.current_time()
        plane.publisher.changed()
        await wait_all_tasks_blocked()
        assert [at for at, _ in published] == [begin]  # the first at once
        for _ in range(100):
            await trio.sleep(0.001)
            plane.publisher.changed()
        await plane.publisher.published()
        assert len(published) == tables
        seen, _ = published[-1]
        assert seen >= begin + 0.1 - 1e-9  # it has the last change
        await plane.publisher.published()
        assert trio.current_time() == seen  # nothing is left to wait for
