"""The OpenAPI document says what the API does, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from agentmgr.api.app import make_app
from agentmgr.api.metrics import Metrics
from agentmgr.api.operations import Server
from agentmgr.api.resources import operations
from agentmgr.manager import AgentManager


@pytest.fixture
async def document(url: str) -> dict[str, Any]:
    async with httpx2.AsyncClient(timeout=60) as http:
        response = await http.get(f"{url}/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


def described(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, item in document["paths"].items() for method in item}


@pytest.mark.parametrize("control", [False, True])
async def test_each_route_is_described_and_each_description_is_a_route(
    manager: AgentManager, nursery: Any, control: bool
) -> None:
    import trio

    from agentmgr.api.openapi import document

    app = make_app(Server(manager, nursery, trio.Event(), Metrics(manager), control=control))
    routes = {
        (method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or ()) - {"HEAD", "OPTIONS"}
    }
    assert described(document(operations(control=control))) == routes


async def test_the_document_of_a_port_has_nothing_of_the_control_socket(document: dict[str, Any]) -> None:
    assert not {path for _, path in described(document)} & {"/api/v1/shutdown", "/api/v1/listeners"}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


async def test_every_reference_leads_to_a_schema_and_every_schema_is_used(document: dict[str, Any]) -> None:
    used = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert used == set(document["components"]["schemas"])


async def test_operations_are_documented(document: dict[str, Any]) -> None:
    names = set()
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["summary"].endswith("."), operation
            names.add(operation["operationId"])
    assert len(names) == len(described(document))


async def test_the_examples_run(document: dict[str, Any], http: httpx2.AsyncClient, agent_file: str) -> None:
    """Each example body is taken as it stands, but for the path of the agent file."""
    await http.post("/services", json={"name": "known", "agent_factory_path": agent_file})
    await http.post("/routing/rules", json={"name": "known"})
    ran = 0
    for path, item in document["paths"].items():
        for method, operation in item.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" not in content:
                continue
            text = json.dumps(content["example"]).replace("./my_agent.py", agent_file)
            url = path.removeprefix("/api/v1").replace("{ref}", "known")
            if method == "put":  # the example has a name of its own
                await http.post("/services", json={"name": "other", "agent_factory_path": agent_file})
                url = url.replace("known", "other")
                text = text.replace("my-service", "other")
            response = await http.request(method, url, json=json.loads(text))
            if "/node" in path:  # this manager has none
                assert (response.status_code, response.json()["code"]) == (409, "wrong_state")
                continue
            assert str(response.status_code) in operation["responses"], response.text
            assert response.is_success, response.text
            ran += 1
    assert ran >= 6


async def test_the_page_needs_nothing_from_elsewhere(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        page = await http.get("/docs")
        assert page.headers["Content-Type"].startswith("text/html")
        links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(links) >= 4
        for link in links:
            assert link.startswith("/docs/"), "from this server, so that it works offline"
            response = await http.get(link)
            assert response.status_code == 200
            assert response.content
        assert (await http.get("/docs/../api.py")).status_code == 404
        assert (await http.get("/docs/LICENSE")).status_code == 404
        assert "'none'" in page.headers["Content-Security-Policy"]


async def test_the_root_leads_to_the_documentation(url: str) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        response = await http.get(url, follow_redirects=True)
    assert (response.status_code, response.url.path) == (200, "/docs")


async def test_health_is_at_the_root(url: str) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        response = await http.get(f"{url}/health")
    assert (response.status_code, response.json()["status"]) == (200, "healthy")
