"""`GET /metrics`: what Prometheus reads."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from agentmgr.client.session import open_session
from agentmgr.errors import ServiceFailed, ServiceFailedToStart
from agentmgr.manager import AgentManager
from agentmgr.models import Event, RestartMode, ServiceConfig


async def scrape(url: str) -> dict[tuple[str, ...], float]:
    async with httpx2.AsyncClient(timeout=60) as http:
        response = await http.get(f"{url}/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_it_counts_what_there_is(url: str, manager: AgentManager, agent_file: str) -> None:
    await manager.register_service("echo", agent_file, auto_start=True)
    await manager.register_service("idle", agent_file)
    found = await scrape(url)
    assert found["agentmgr_services", "running"] == 1
    assert found["agentmgr_services", "stopped"] == 1
    assert found["agentmgr_instances", "running"] == 1
    assert found["agentmgr_service_health", "healthy", "echo"] == 1
    assert found["agentmgr_service_health", "unhealthy", "echo"] == 0
    assert found["agentmgr_service_health", "unknown", "idle"] == 1
    assert found["agentmgr_service_wanted", "echo"] == 1
    assert found["agentmgr_service_wanted", "idle"] == 0
    assert found["agentmgr_disk_free_bytes",] > 0
    assert found["agentmgr_service_instances_running", "echo"] == 1
    assert found["agentmgr_service_instances_wanted", "echo"] == 1
    assert found["agentmgr_service_sessions_active", "idle"] == 0
    assert found["agentmgr_service_restarts_total", "echo"] == 0
    assert found["agentmgr_degraded",] == 0


async def test_a_job_is_wanted_until_it_has_completed_and_one_that_failed_still_is(
    url: str, manager: AgentManager
) -> None:
    once = ServiceConfig(restart=RestartMode.NEVER)
    for name, code in (("done", 0), ("failed", 3)):
        command = ("python3", "-c", f"raise SystemExit({code})")
        with suppress(ServiceFailed):
            await manager.register_service(name, command=command, config=once, auto_start=True)
    await manager.register_service(
        "nightly", command=("true",), config=ServiceConfig(schedule="0 3 * * *"), auto_start=True
    )
    found = await scrape(url)
    wanted = {name: found["agentmgr_service_wanted", name] for name in ("done", "failed", "nightly")}
    assert wanted == {"done": 0, "failed": 1, "nightly": 0}


async def test_what_the_database_cannot_keep_is_counted(url: str, manager: AgentManager) -> None:
    manager._live().store.record(Event("half a character", detail={"text": "\ud800"}))
    await manager.get_events()
    assert (await scrape(url))["agentmgr_database_dropped_facts_total",] == 1


async def test_it_tells_what_a_service_uses(url: str, manager: AgentManager, agent_file: str) -> None:
    busy = Path(agent_file).with_name("busy.py")  # a start alone may take less than a tick of the kernel's
    tick = "import time\nwhile time.process_time() < 0.05:\n    pass\n"
    busy.write_text(tick + Path(agent_file).read_text())
    await manager.register_service("echo", str(busy), auto_start=True)
    await manager.register_service("idle", agent_file)
    with trio.fail_after(60):
        while ("agentmgr_service_memory_bytes", "echo") not in (found := await scrape(url)):
            pass
    assert found["agentmgr_service_memory_bytes", "echo"] > 2**20
    assert found["agentmgr_service_cpu_cores", "echo"] > 0
    assert found["agentmgr_service_processes", "echo"] >= 1
    assert found["agentmgr_service_threads", "echo"] >= 1
    assert found["agentmgr_service_open_files", "echo"] >= 4
    assert ("agentmgr_service_memory_bytes", "idle") not in found


async def test_requests_are_timed_by_operation_and_never_by_what_a_client_says(url: str) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        for path in ("/api/v1/info", "/api/v1/services/who?x=1", "/one/path", "/another/path"):
            await http.get(f"{url}{path}")
    found = await scrape(url)
    assert found["agentmgr_api_answers_total", "get_info", "200"] == 1
    assert found["agentmgr_api_answers_total", "get_service", "400"] == 1
    assert found["agentmgr_api_answers_total", "none", "404"] == 2
    assert found["agentmgr_api_request_seconds_count", "get_info"] == 1
    assert not [key for key in found if "path" in "".join(key)]


async def test_bytes_of_a_session_count_while_it_lives(
    url: str, manager: AgentManager, agent_file: str, nursery: trio.Nursery
) -> None:
    await manager.register_service("echo", agent_file, auto_start=True)
    port = await nursery.start(manager.serve_proxy, "localhost", 0)
    async with open_session(f"ws://localhost:{port}") as session:
        await session.ask("hello")
        found = await scrape(url)
        assert found["agentmgr_service_received_bytes_total", "echo"] > 5
        assert found["agentmgr_service_sent_bytes_total", "echo"] > 5
        assert found["agentmgr_gateway_handshake_seconds_count",] == 1
        assert manager.get_service_stats("echo")["bytes"]["from_client"] > 5


async def test_a_blocked_event_loop_shows(url: str) -> None:

    with trio.fail_after(60):
        while not (await scrape(url)).get(("agentmgr_event_loop_lag_seconds_count",)):
            pass
        time.sleep(0.7)  # noqa: ASYNC251  # which is what the figure is about
        while (await scrape(url))["agentmgr_event_loop_lag_seconds_sum",] < 0.1:
            pass


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_finds_nothing_wrong(url: str, manager: AgentManager, agent_file: str) -> None:
    await manager.register_service("echo", agent_file)
    async with httpx2.AsyncClient(timeout=60) as http:
        text = (await http.get(f"{url}/metrics")).content
    done = await trio.run_process(
        ["promtool", "check", "metrics"], stdin=text, capture_stderr=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


async def test_it_tells_how_a_jobs_last_run_ended(url: str, manager: AgentManager) -> None:
    job = ServiceConfig(restart=RestartMode.NEVER)
    await manager.register_service("good", command=["true"], config=job, auto_start=True)
    with pytest.raises(ServiceFailedToStart):
        await manager.register_service("bad", command=["false"], config=job, auto_start=True)
    found = await scrape(url)
    assert found["agentmgr_service_last_run_success", "good"] == 1
    assert found["agentmgr_service_last_run_success", "bad"] == 0
    assert found["agentmgr_service_last_run_end_timestamp_seconds", "bad"] > 1.7e9
