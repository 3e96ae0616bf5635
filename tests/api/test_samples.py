"""What the console sees of each second: the whole, a row for each service, and the services it names."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio

from agentmgr.client.http import Lines, request
from agentmgr.client.session import open_session
from agentmgr.manager import AgentManager

BUSY = """
import threading

def create_agent():
    def burn():
        while True:
            pass
    threading.Thread(target=burn, daemon=True).start()

    async def answer(message):
        return "done"
    return answer
"""


@asynccontextmanager
async def samples(url: str, words: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    kind = ""

    def parse(line: bytes) -> dict[str, Any] | None:
        nonlocal kind
        name, _, value = line.decode().partition(": ")
        if name == "event" and kind != "has an id":
            kind = value
        elif not line:
            kind = ""
        elif name == "id":  # it comes first: of what follows
            kind = "has an id"
        return json.loads(value) if name == "data" and kind == "sample" else None

    with trio.fail_after(60):
        async with request(url, "GET", f"/api/v1/events?sample={words}", headers={}) as response:
            assert response.status == 200
            yield Lines(response, parse)


async def test_the_overview_comes_at_once_and_counts_what_there_is(
    http: httpx2.AsyncClient, url: str, manager: AgentManager, agent_file: str
) -> None:
    await manager.register_service("up", agent_file, auto_start=True)
    await manager.register_service("down", agent_file)
    async with samples(url, "overview") as stream:
        first = await anext(stream)
    assert first.keys() == {"at", "overview"}
    overview = first["overview"]
    assert overview["services"]["total"] == 2
    assert (overview["services"]["running"], overview["services"]["stopped"]) == (1, 1)
    assert overview["health"]["healthy"] == 1
    assert (overview["connections"], overview["stored_sessions"], overview["questions"]) == (0, 0, 0)
    assert overview["manager"]["pid"] == os.getpid()
    assert overview["manager"]["memory_bytes"] > 2**20
    assert (overview["refusals"], overview["restarts"], overview["degraded"]) == ({}, 0, None)


async def test_rows_of_all_services_come_once_and_then_only_what_has_changed(
    url: str, manager: AgentManager, agent_file: str
) -> None:
    for name in ("a", "b", "c"):
        await manager.register_service(name, agent_file, tags=["z", "y"])
    async with samples(url, "services") as stream:
        first = (await anext(stream))["services"]
        assert first["all"] is True
        assert [row["name"] for row in first["rows"]] == ["a", "b", "c"]
        assert first["rows"][0]["tags"] == ["y", "z"]
        assert "services" not in await anext(stream)
        await manager.start_service("b")
        gone = await manager.unregister_service("c")
        seen, left = {}, []
        while left != [gone.service_id] or seen.get("b") != "running":
            news = (await anext(stream)).get("services", {"rows": (), "gone": ()})
            assert "all" not in news
            left += news["gone"]
            seen |= {row["name"]: row["status"] for row in news["rows"]}
        assert seen.keys() == {"b"}


async def test_a_row_follows_the_connections_and_the_registration(
    url: str, manager: AgentManager, agent_file: str, nursery: trio.Nursery
) -> None:
    await manager.register_service("x", agent_file, auto_start=True)
    port = await nursery.start(manager.serve_proxy, "localhost", 0)

    async def row(stream: AsyncIterator[dict[str, Any]], **wanted: Any) -> None:
        async for sample in stream:
            for row in sample.get("services", {"rows": ()})["rows"]:
                if wanted.items() <= row.items():
                    return

    async with samples(url, "services") as stream:
        await row(stream, connections=0, ready=1)
        async with open_session(f"ws://localhost:{port}/services/x"):
            await row(stream, connections=1)
        await row(stream, connections=0)
        await manager.update_service("x", {"description": "new"})
        await row(stream, description="new")


async def test_the_figures_of_a_service_are_measured_each_second(
    url: str, manager: AgentManager, tmp_path: Any
) -> None:
    path = tmp_path / "busy.py"
    path.write_text(BUSY)
    service = await manager.register_service("busy", str(path), auto_start=True)
    async with samples(url, f"{service.service_id},svc_0123456789abcdef") as stream:
        async for sample in stream:
            figures = sample["figures"]
            if (figures[service.service_id]["cpu"] or 0) > 0.1:  # of a thread that never rests
                break
    assert figures["svc_0123456789abcdef"] is None
    shown = figures[service.service_id]
    assert (shown["status"], shown["health"], shown["version"]) == ("running", "healthy", 2)
    (instance,) = shown["instances"]
    assert instance["pid"] == service.instances[0].pid
    assert instance["memory_bytes"] == shown["memory_bytes"] > 2**20
    assert shown["first_byte"] == {"p50_s": None, "p95_s": None, "p99_s": None}


async def test_the_first_byte_of_the_last_minute_and_the_sessions_are_shown(
    url: str, manager: AgentManager, agent_file: str, nursery: trio.Nursery
) -> None:
    service = await manager.register_service("x", agent_file, auto_start=True)
    port = await nursery.start(manager.serve_proxy, "localhost", 0)
    async with open_session(f"ws://localhost:{port}/services/x") as session:
        await session.ask("hello")
    await manager.check_service_health("x")
    async with samples(url, f"overview,{service.service_id}") as stream:
        async for sample in stream:
            shown = sample["figures"][service.service_id]
            if shown["first_byte"]["p50_s"] is not None and sample["overview"]["stored_sessions"]:
                break
    assert 0 < shown["first_byte"]["p50_s"] <= shown["first_byte"]["p99_s"]
    assert shown["sessions"] == sample["overview"]["sessions"] == 1


@pytest.mark.parametrize(
    "words", ["nonsense", "overview,svc_1", ",".join(f"svc_{n:016x}" for n in range(201))]
)
async def test_what_cannot_be_sampled_is_refused(http: httpx2.AsyncClient, words: str) -> None:
    response = await http.get(f"/events?sample={words}")
    assert response.status_code == 400
    assert response.json()["errors"][0]["path"] == "sample"


async def test_nothing_is_measured_without_a_viewer(url: str, manager: AgentManager) -> None:
    sampler = manager._live().sampler
    async with samples(url, "overview") as stream:
        await anext(stream)
        assert len(sampler._viewers) == 1
        assert sampler._processes
    with trio.fail_after(60):
        while sampler._viewers or sampler._processes:
            await trio.lowlevel.checkpoint()
