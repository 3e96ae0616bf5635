"""What supervisor and gateway report is written down, counted and announced; tables follow changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from attrs import evolve

from agentmgr.core.routing import RoutingTable
from agentmgr.manager.control_plane import ControlPlane
from agentmgr.manager.events import EventLog
from agentmgr.manager.hooks import Hooks
from agentmgr.manager.jobs import Jobs
from agentmgr.manager.on_demand import OnDemand
from agentmgr.manager.recorder import Recorder
from agentmgr.manager.registry import Registry
from agentmgr.manager.tokens import Tokens
from agentmgr.models import (
    Connection,
    ConnectionEnd,
    HealthCheck,
    HealthStatus,
    Instance,
    InstanceRecord,
    ServiceConfig,
    ServiceSpec,
    ServiceStatus,
    utc_now,
)
from agentmgr.process.ownership import ManagerLock
from agentmgr.process.paths import RuntimePaths
from agentmgr.settings import Settings
from agentmgr.supervisor import Supervisor
from agentmgr.testing.memory_store import MemoryStore

INSTANCE = Instance("ins_1", "svc_1", 0, ServiceStatus.STARTING)


class Recording:
    """A recorder, and what it has others do."""

    def __init__(self) -> None:
        self.changes = self.active = 0
        self.launched: list[InstanceRecord] = []
        self.ended: list[str] = []  # ids of instances
        self.loads: list[str] = []  # ids of services whose load may have changed
        self.store = MemoryStore()
        self.recorder = Recorder(
            self.store,
            EventLog(self.store),
            {},
            changed=self._changed,
            drain=self._drain,
            active=lambda service_id: self.active,
            hooks=lambda: Hooks(
                Registry(self.store, (), ()), EventLog(self.store), lambda: None, lambda _: ()
            ),
            jobs=lambda: Jobs(self.store, Registry(self.store, (), ()), Supervisor(), {}),
            on_demand=lambda: OnDemand(
                Registry(self.store, (), ()),
                Supervisor(),
                None,
                EventLog(self.store),
                connections=len,
                unfinished=None,
            ),
            load_changed=self.loads.append,
            launched=self.launched.append,
            ended=self.ended.append,
        )

    def _changed(self) -> None:
        self.changes += 1

    async def _drain(self, instance_id: str, timeout_s: float, for_good: bool) -> None:
        await trio.lowlevel.checkpoint()

    async def kinds(self) -> list[str]:
        return [event.kind for event in await self.store.events()]


async def test_each_change_outdates_the_table_and_a_new_status_or_health_is_an_event() -> None:
    it = Recording()
    running = evolve(INSTANCE, status=ServiceStatus.RUNNING)
    for seen in (INSTANCE, evolve(INSTANCE, pid=1), running, evolve(running, health=HealthStatus.HEALTHY)):
        it.recorder.instance_changed(seen)
    it.recorder.instance_changed(evolve(INSTANCE, status=ServiceStatus.BACKOFF))
    it.recorder.instance_changed(evolve(INSTANCE, status=ServiceStatus.STOPPED))
    assert it.changes == 6
    assert it.loads == ["svc_1"] * 6
    assert await it.kinds() == [
        "instance.starting", "instance.running", "instance.health", "instance.backoff", "instance.stopped",
    ]  # fmt: skip
    assert it.recorder.totals("svc_1").restarts == 1
    it.recorder.forget("svc_1")
    assert it.recorder.totals("svc_1").restarts == 0


async def test_only_a_higher_peak_counts() -> None:
    it, peaks = Recording(), []
    for it.active in (1, 2, 1, 2, 3):
        it.recorder.connection_opened(
            Connection(
                "con_1", "192.0.2.1", 1, "svc_1", "echo", "ins_1", None, "/", utc_now(), 0.0, 0, 0, 0, 0
            )
        )
        peaks.append(it.recorder.totals("svc_1").sessions_peak)
    assert peaks == [1, 2, 2, 2, 3]
    assert it.loads == ["svc_1"] * 5


async def test_a_check_is_a_row_where_it_finds_something_else_than_the_one_before() -> None:
    it = Recording()
    await it.store.add_service(ServiceSpec("echo", ServiceConfig("agent.py"), service_id="svc_1"))
    running = evolve(INSTANCE, status=ServiceStatus.RUNNING)

    def check(ok: bool, reason: str | None = None, instance_id: str = "ins_1") -> None:
        health = HealthStatus.HEALTHY if ok else HealthStatus.DEGRADED
        it.recorder.health_checked(
            HealthCheck("svc_1", instance_id, health, utc_now(), ok, 0.01 if ok else None, reason)
        )

    it.recorder.instance_changed(running)
    it.recorder.instance_changed(evolve(running, instance_id="ins_2"))
    for ok, reason in (
        (True, None),
        (True, None),
        (False, "slow"),
        (False, "slow"),
        (False, "gone"),
        (True, None),
    ):
        check(ok, reason)
        check(True, None, "ins_2")
    for status in (ServiceStatus.BACKOFF, ServiceStatus.RUNNING):
        it.recorder.instance_changed(evolve(INSTANCE, status=status))
    check(True)
    rows = [(row.instance_id, row.reason, row.ok) for row in await it.store.health_history("svc_1")][::-1]
    assert rows == [
        ("ins_1", None, True),
        ("ins_2", None, True),
        ("ins_1", "slow", False),
        ("ins_1", "gone", False),
        ("ins_1", None, True),
        ("ins_1", None, True),  # the first since it started again
    ]
    assert it.recorder.figures.checks_failed == {False: 10, True: 3}
    assert list(it.recorder.figures.checks.cumulative())[-1][1] == 10


async def test_an_http_request_is_counted_and_no_event() -> None:
    it = Recording()
    request = ConnectionEnd(
        "con_1", "svc_1", "ins_1", utc_now(), utc_now(), "backend", 1000, "HTTP status 200", 0, 0, 1, 1,
        is_request=True,
    )  # fmt: skip
    it.recorder.connection_closed(request)
    assert await it.kinds() == []
    assert it.recorder.totals("svc_1").sessions_total == 1
    it.recorder.connection_closed(evolve(request, is_request=False))
    assert await it.kinds() == ["session.closed"]


async def test_changes_that_come_together_share_one_table_and_are_announced_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, paths = MemoryStore(), RuntimePaths.of(tmp_path / "agents.db")
    async with trio.open_nursery() as nursery:
        plane = ControlPlane(
            store, await store.load(), await Tokens.load(store), ManagerLock(paths), nursery, Settings(),
            paths, supervises=False,
        )  # fmt: skip
        tables: list[RoutingTable] = []
        monkeypatch.setattr(plane.worker_manager, "publish", tables.append)
        nursery.start_soon(plane.publisher.run)
        with plane.events.subscribe() as events:
            for _ in range(1000):
                plane.publisher.changed()
            await plane.announce_published("rule.created", name="vip")
            assert len(tables) == 1
            assert events.receive_nowait().detail == {"name": "vip"}
        await plane.publisher.published()  # nothing has changed since
        assert len(tables) == 1
        nursery.cancel_scope.cancel()
