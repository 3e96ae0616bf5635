"""What a form needs to register a service: what each field is, and the API's own words before it is sent."""

from __future__ import annotations

from typing import Any

import attrs
import httpx2
import pytest
import trio

from agentmgr.client import ManagerClient
from agentmgr.core.bodies import Registration
from agentmgr.errors import NameTaken
from agentmgr.manager import AgentManager
from agentmgr.models.fields import Option


async def test_a_check_says_how_it_would_look_and_registers_nothing(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    body = {"name": "x", "agent_factory_path": agent_file, "auto_start": True}
    response = await http.post("/services?check=true", json=body)
    assert (response.status_code, response.json()["name"], response.json()["status"]) == (200, "x", "stopped")
    assert "Location" not in response.headers
    assert manager.list_services() == []
    assert await manager.get_events() == ()


@pytest.mark.parametrize(
    ("changes", "status", "paths"),
    [
        ({"name": "taken"}, 409, ["name"]),
        ({"name": "-", "max_sessions": "3"}, 400, ["max_sessions"]),  # types first
        ({"name": "-"}, 400, ["name"]),
        ({"port": 8123}, 409, ["port"]),
        ({"agent_factory_path": "/no/such.py"}, 422, ["agent_factory_path"]),
        ({"agent_factory_path": None}, 400, ["agent_factory_path"]),
        ({"command": ["x"]}, 400, ["agent_factory_path"]),
        ({"ready": "tcp"}, 400, ["ready"]),
        ({"port": 8124, "instances": 2}, 400, ["port"]),
        ({"after": ["new"]}, 400, ["after"]),
        ({"restart_delay": -1.0}, 400, ["restart_delay"]),
    ],
)
@pytest.mark.parametrize("check", ["true", "false"])
async def test_what_cannot_be_registered_names_its_fields(
    http: httpx2.AsyncClient,
    manager: AgentManager,
    agent_file: str,
    check: str,
    changes: dict[str, Any],
    status: int,
    paths: list[str],
) -> None:
    await manager.register_service("taken", agent_file, port=8123)
    body = {"name": "new", "agent_factory_path": agent_file, **changes}
    response = await http.post(f"/services?check={check}", json=body)
    assert response.status_code == status
    problems = response.json()["errors"]
    assert sorted(problem["path"] for problem in problems) == paths
    assert all(problem["message"] for problem in problems)


async def test_a_client_can_check_too(client: ManagerClient, manager: AgentManager, agent_file: str) -> None:
    assert (await client.register_service("x", agent_file, check=True)).name == "x"
    await manager.register_service("x", agent_file)
    with pytest.raises(NameTaken) as caught:
        await client.register_service("x", agent_file, check=True)
    assert [problem.path for problem in caught.value.fields] == ["name"]


async def test_the_schema_of_a_registration_has_all_that_a_form_shows(url: str) -> None:
    async with httpx2.AsyncClient() as http:
        document = (await http.get(f"{url}/openapi.json")).json()
    properties = document["components"]["schemas"]["Registration"]["properties"]
    for field in attrs.fields(Registration):
        if option := Option.of(field):
            shown = properties[field.name]
            assert shown["title"], field.name
            assert shown["description"], field.name
            assert "default" in shown or field.name == "name"
            # All numbers with a fraction that name no unit are durations.
            is_duration = {"type": "number"} in [{"type": shown.get("type")}, *shown.get("anyOf", [])]
            is_duration = is_duration and not option.unit
            assert is_duration <= (shown.get("x-unit") == "s" and "econds" in shown["description"]), (
                field.name
            )
    assert properties["memory_limit_mb"]["x-unit"] == "MB"
    assert properties["cpu_limit_percent"]["title"] == "CPU limit"
    assert properties["tags"]["default"] == []
    assert properties["instances"]["x-live"] is True
    assert "x-live" not in properties["cwd"]
    assert properties["health_check_interval"]["x-placeholder"] == "the manager's"


async def test_the_doctor_of_a_running_manager_can_be_asked(
    http: httpx2.AsyncClient, client: ManagerClient, manager: AgentManager, agent_file: str, tmp_path: Any
) -> None:
    await manager.register_service("x", agent_file)
    (tmp_path / "echo_agent.py").unlink()
    findings = (await http.get("/doctor")).json()["findings"]
    by_what = {finding["what"]: finding for finding in findings}
    assert by_what["manager"]["result"] == "ok"
    assert "is gone" in by_what["service x"]["found"]
    assert by_what["service x"]["result"] == "error"
    assert "agentmgr unregister x" in by_what["service x"]["advice"]
    assert await client.diagnose() == findings
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(http.get, "/doctor")
