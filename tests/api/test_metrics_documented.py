"""Every metric says what it is, and the dashboard asks for nothing that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from agentmgr.client.session import open_session
from agentmgr.manager import AgentManager

ROOT = Path(__file__).parents[2]
ALERTS = (ROOT / "examples/prometheus-alerts.yml").read_text()
DASHBOARD = json.loads((ROOT / "examples/grafana-dashboard.json").read_text())


@pytest.fixture
async def emitted(url: str, manager: AgentManager, agent_file: str, nursery: trio.Nursery) -> dict[str, set]:
    """The labels of each sample that is emitted once everything has happened at least once."""
    await manager.register_service("echo", agent_file, auto_start=True)
    port = await nursery.start(manager.serve_proxy, "localhost", 0)
    async with open_session(f"ws://localhost:{port}") as session:
        await session.ask("hello")
    async with await trio.open_tcp_stream("localhost", port) as stranger:
        await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await stranger.receive_some()
    await manager.check_service_health("echo")
    with trio.fail_after(60):
        while manager.get_service_stats("echo")["usage"] is None:  # noqa: ASYNC110  # sampled now and then
            await trio.sleep(0.02)
    async with httpx2.AsyncClient(timeout=60) as http:
        await http.get(f"{url}/health")
        text = (await http.get(f"{url}/metrics")).text
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation.endswith(".") for family in families)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


async def test_every_metric_is_ours_and_nothing_that_a_client_says_is_a_label(
    emitted: dict[str, set],
) -> None:
    assert len(emitted) > 40
    assert all(name.startswith("agentmgr_") for name in emitted)
    labels = {"service", "status", "health", "code", "result", "operation", "le", "version"}
    assert set().union(*emitted.values()) == labels


async def test_the_dashboard_asks_for_what_there_is(emitted: dict[str, set]) -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())] + [
        variable["definition"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable
    ]
    assert len(expressions) > 30
    for expression in expressions:
        names = re.findall(r"agentmgr_\w+", expression)
        assert names
        assert set(names) <= set(emitted), expression
        for name, matchers in re.findall(r"(agentmgr_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=", matchers)) <= emitted[name], expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert set(labels.split(", ")) <= emitted[names[0]], expression


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"


async def test_the_alerts_ask_for_what_there_is(emitted: dict[str, set]) -> None:
    """`.ci/alerts` tries when they fire."""
    expressions = re.findall(r"expr: (?:>\n)?(.*)", ALERTS)
    names = {name for expression in expressions for name in re.findall(r"agentmgr_\w+", expression)}
    assert len(expressions) == ALERTS.count("- alert:")
    assert len(names) >= 7
    assert names <= set(emitted)
