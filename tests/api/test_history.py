"""The last day of services by minute, and how their instances ended, also before this manager began."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx2
import pytest
import trio

from agentmgr.client import ManagerClient
from agentmgr.manager import AgentManager
from agentmgr.manager import minutes as minutes_module


async def test_each_running_service_is_written_down_by_minute(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    up = await manager.register_service("up", agent_file, auto_start=True)
    down = await manager.register_service("down", agent_file)
    log, now = manager._live().minute_log, int(time.time()) // 60
    manager._live().recorder.first_bytes.observe(up.service_id, 0.2, now - 1)
    await log.write(now - 2)
    await log.write(now - 1)
    found = (await http.get(f"/services/{up.name}/history?since={(now - 5) * 60}")).json()
    assert found["minutes"] == [minute * 60 for minute in range(now - 5, now)]
    figures = found["services"][up.service_id]
    assert figures["connections"] == [None, None, None, 0, 0]
    assert figures["restarts"] == [None, None, None, 0, 0]
    assert figures["first_byte_p50_s"][:-1] == [None] * 4
    assert 0.2 <= figures["first_byte_p50_s"][-1] < 0.24
    several = (await http.get(f"/history?services={up.service_id},{down.service_id}&minutes=3")).json()
    assert several["services"][up.service_id]["connections"] == [None, 0, 0]
    assert several["services"][down.service_id]["cpu"] == [None, None, None]


async def test_of_very_many_services_each_is_written_in_one_minute_of_several(
    manager: AgentManager, agent_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await manager.register_service(name, agent_file, auto_start=True)
    monkeypatch.setattr(minutes_module, "AT_ONCE", 2)
    for minute in range(100, 106):
        await manager._live().minute_log.write(minute)
    ids = [service.service_id for service in manager.list_services()]
    assert {key: [*found] for key, found in (await manager.get_minutes(ids, 0, 200)).items()} == {
        service_id: [100, 102, 104] for service_id in ids
    }


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "services"),
        ("services=x", "services"),
        ("services=svc_0123456789abcdef&minutes=0", "minutes"),
        ("services=svc_0123456789abcdef&minutes=1441", "minutes"),
    ],
)
async def test_a_wrong_question_names_its_field(http: httpx2.AsyncClient, query: str, field: str) -> None:
    response = await http.get(f"/history?{query}")
    assert (response.status_code, response.json()["errors"][0]["path"]) == (400, field)


async def test_too_much_at_once_is_refused(http: httpx2.AsyncClient) -> None:
    ids = ",".join(f"svc_{number:016x}" for number in range(20))
    assert (await http.get(f"/history?services={ids}&minutes=1440")).status_code == 400
    assert (await http.get(f"/history?services={ids}&minutes=1000")).status_code == 200


async def test_why_an_instance_ended_outlives_the_manager(tmp_path: Path, agent_file: str) -> None:
    path = tmp_path / "ends.db"
    async with AgentManager(path) as manager:
        service = await manager.register_service("x", agent_file, auto_start=True)
        pid = service.instances[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(60):
            while not (ends := await manager.get_ends("x")):
                await trio.lowlevel.checkpoint()
    assert (ends[0].planned, ends[0].exit, ends[0].pid) == (False, "SIGKILL", pid)
    async with AgentManager(path, supervise=False) as manager:
        *_, killed = await manager.get_ends("x")
        assert killed == ends[0]
        await manager.unregister_service("x")
        again = await manager.register_service("x", agent_file)
        assert await manager.get_ends(again.service_id) == ()


async def test_the_api_shows_the_ends(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    await manager.register_service("x", agent_file, auto_start=True)
    await manager.restart_service("x")
    await manager.stop_service("x")
    items = (await http.get("/services/x/ends?limit=1")).json()["items"]
    assert [(item["planned"], item["reason"], item["slot"]) for item in items] == [(True, "stopped", 0)]
    assert len((await http.get("/services/x/ends")).json()["items"]) == 2
    assert (await http.get("/services/none/ends")).status_code == 404


async def test_what_ended_while_no_manager_ran_is_found_gone(tmp_path: Path, agent_file: str) -> None:
    path = tmp_path / "gone.db"
    async with AgentManager(path) as manager:
        service = await manager.register_service("x", agent_file, auto_start=True)
        manager.log_path("x").write_text("last words\n")
        manager.request_shutdown(leave_running=True)
    pid = service.instances[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await trio.to_thread.run_sync(os.waitpid, pid, 0)
    async with AgentManager(path) as manager:
        (end,) = await manager.get_ends("x")
        assert (end.planned, end.pid, end.output) == (False, pid, "last words\n")
        assert "while no manager ran" in end.reason


async def test_a_client_gets_what_the_manager_has(
    client: ManagerClient, manager: AgentManager, agent_file: str
) -> None:
    service = await manager.register_service("x", agent_file, auto_start=True)
    await manager.stop_service("x")
    minute = int(time.time()) // 60 - 1
    await manager.start_service("x")
    await manager._live().minute_log.write(minute)
    ids = [service.service_id]
    assert await client.get_ends("x") == await manager.get_ends("x")
    assert await client.get_minutes(ids, minute, minute) == await manager.get_minutes(ids, minute, minute)
    assert await client.service_rows() == await manager.service_rows()
    assert await client.get_routing_hits() == manager.get_routing_hits()
    async with client.samples(["overview", *ids]) as samples:
        sample = await anext(samples)
    assert sample["overview"]["services"]["total"] == 1
    assert sample["figures"][service.service_id]["status"] == "running"
