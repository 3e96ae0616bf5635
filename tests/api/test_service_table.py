"""The list of services as a table of thousands needs it: sorted, searched, and in short rows."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import trio

from agentmgr.client.session import open_session
from agentmgr.manager import AgentManager
from agentmgr.manager.summaries import ERROR_CHARS


async def listed(http: httpx2.AsyncClient, query: str) -> list[str]:
    """The names of all pages, of two services each."""
    names: list[str] = []
    cursor = ""
    while True:
        found = (await http.get(f"/services?limit=2&{query}{cursor}")).json()
        names += [item["name"] for item in found["items"]]
        if found["next_cursor"] is None:
            assert found["total"] == len(names)
            return names
        cursor = f"&cursor={found['next_cursor']}"


async def test_a_list_is_sorted_by_a_field_then_by_name(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    for name in ("d", "b", "a", "c", "e"):
        await manager.register_service(name, agent_file)
    await manager.start_service("c")
    await manager.scale_service("b", 3)
    assert await listed(http, "") == ["a", "b", "c", "d", "e"]
    assert await listed(http, "sort=-name") == ["e", "d", "c", "b", "a"]
    assert await listed(http, "sort=status") == ["c", "a", "b", "d", "e"]
    assert await listed(http, "sort=-instances") == ["b", "a", "c", "d", "e"]
    assert await listed(http, "sort=-started_at") == ["c", "a", "b", "d", "e"]
    assert await listed(http, "sort=started_at&fields=rows") == ["a", "b", "d", "e", "c"]


async def test_a_text_is_looked_for_in_all_that_names_a_service(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    await manager.register_service("weather", agent_file, description="Sun and rain", tags=["prod"])
    await manager.register_service("worker", command=["sh", "-c", "echo hi"])
    assert await listed(http, "q=RAIN") == ["weather"]
    assert await listed(http, "q=echo_agent.py") == ["weather"]
    assert await listed(http, "q=Prod") == ["weather"]
    assert await listed(http, "q=echo%20hi") == ["worker"]
    assert await listed(http, "q=e&status=stopped&tags=prod,x") == ["weather"]
    assert await listed(http, "q=nothing") == []


async def test_a_row_has_what_a_table_shows(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    service = await manager.register_service("x", agent_file, tags=["b", "a"], auto_start=True)
    (row,) = (await http.get("/services?fields=rows")).json()["items"]
    assert row["service_id"] == service.service_id
    assert (row["status"], row["ready"], row["instances"], row["tags"]) == ("running", 1, 1, ["a", "b"])
    assert row["started_at"]
    assert "config" not in row


async def test_the_error_of_a_row_is_one_line_with_the_traceback_s_last(
    http: httpx2.AsyncClient, manager: AgentManager, tmp_path: Any
) -> None:
    path = tmp_path / "bad.py"
    path.write_text("raise ValueError('the reason')\n")
    service = await manager.register_service("bad", str(path))
    await manager.start_service(service.service_id, wait=False)
    with trio.fail_after(60):
        while not (row := (await http.get("/services?fields=rows")).json()["items"][0])["error_message"]:
            await trio.lowlevel.checkpoint()
    assert "\n" not in row["error_message"]
    assert "the reason" in row["error_message"]
    assert len(row["error_message"]) <= ERROR_CHARS


@pytest.mark.parametrize(
    ("query", "field"),
    [("sort=color", "sort"), ("fields=few", "fields"), ("sort=-status&cursor=bm8=", "cursor")],
)
async def test_a_wrong_question_names_its_field(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str, query: str, field: str
) -> None:
    await manager.register_service("x", agent_file)
    response = await http.get(f"/services?{query}")
    assert (response.status_code, response.json()["errors"][0]["path"]) == (400, field)


async def test_the_hits_of_rules_in_the_last_hour_are_counted(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str, nursery: trio.Nursery
) -> None:
    await manager.register_service("x", agent_file, auto_start=True)
    for name, path in (("some", "/here"), ("none", "/nowhere")):
        condition = {"field": "path", "operator": "starts_with", "value": path}
        body = {"name": name, "conditions": [condition], "target_services": ["x"]}
        assert (await http.post("/routing/rules", json=body)).status_code == 201
    port = await nursery.start(manager.serve_proxy, "localhost", 0)
    for path in ("here", "here/too", "services/x"):
        async with open_session(f"ws://localhost:{port}/{path}"):
            pass
    assert (await http.get("/routing/hits")).json() == {
        "minutes": 60, "rules": {"some": 2, "none": 0}, "default": 1,
    }  # fmt: skip
