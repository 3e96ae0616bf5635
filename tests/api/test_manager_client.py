"""`ManagerClient` has the methods of `AgentManager`, and what it raises is what the manager raised."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from agentmgr.client import ManagerClient, aio
from agentmgr.errors import (
    AgentFileNotFound,
    InvalidRequest,
    ManagerNotRunning,
    NameTaken,
    ServiceFailedToStart,
    ServiceNotFound,
    VersionMismatch,
)
from agentmgr.manager import AgentManager
from agentmgr.models import (
    ConditionOperator,
    RoutingCondition,
    RoutingRule,
    RoutingStrategy,
    ServiceConfig,
    ServiceStatus,
)
from tests.asyncio_side import asyncio_side


@pytest.fixture(params=["trio", "asyncio"])
async def client(request: pytest.FixtureRequest, control: Path) -> AsyncIterator[ManagerClient]:
    if request.param == "trio":
        yield ManagerClient(control)
    else:
        async with asyncio_side() as there:
            yield there(aio.ManagerClient(control))


async def test_what_a_client_sees_is_what_the_manager_has(
    client: ManagerClient, manager: AgentManager, agent_file: str
) -> None:
    config = ServiceConfig(max_sessions=3, env={"A": "b"}, restart_delay=0)
    made = await client.register_service(
        "x", agent_file, description="d", tags={"a", "b"}, config=config, auto_start=True
    )
    assert made.status is ServiceStatus.RUNNING
    with trio.fail_after(60):
        while manager.get_service("x").instances[0].usage is None:  # noqa: ASYNC110
            await trio.sleep(0.05)  # for a sample; the next one comes ten seconds later
    assert await client.get_service_usage("x") == manager.get_service_usage("x")
    assert await client.get_service("x") == manager.get_service("x")
    assert await client.list_services(tags=["a"]) == manager.list_services(tags=["a"])
    assert await client.list_services(status=ServiceStatus.STOPPED) == []
    assert await client.get_system_stats() == manager.get_system_stats()
    assert await client.get_connection_stats() == manager.get_connection_stats()
    assert await client.get_health_summary() == manager.get_health_summary()
    assert (await client.check_service_health("x")).ok
    assert len(await client.get_health_history("x")) >= 1
    assert (await client.get_service_stats("x"))["name"] == "x"
    assert (await client.get_info())["pid"] == manager.get_info()["pid"]
    assert (await client.scale_service("x", 2)).config.instances == 2
    assert (await client.restart_service("x")).status is ServiceStatus.RUNNING
    assert (await client.stop_service("x", force=True)).status is ServiceStatus.STOPPED
    assert (await client.unregister_service("x")).name == "x"
    assert await client.list_services() == []
    kinds = [event.kind for event in await client.get_events()]
    assert kinds[0] == "service.registered"
    assert kinds[-1] == "service.unregistered"


async def test_rules_come_back_as_they_were_made(client: ManagerClient) -> None:
    rule = RoutingRule(
        name="vip",
        conditions=(RoutingCondition("user_agent", ConditionOperator.IN_LIST, ("a", "b")),),
        target_tags={"premium"},
        target_strategy=RoutingStrategy.LEAST_CONNECTIONS,
    )
    made = await client.create_routing_rule(rule)
    assert (made.conditions, made.target_tags) == (rule.conditions, rule.target_tags)
    assert await client.list_routing_rules() == [made]
    changed = await client.update_routing_rule("vip", {"enabled": False}, expected_version=1)
    assert (changed.enabled, changed.version) == (False, 2)
    assert await client.get_routing_rule("vip") == changed
    assert (await client.test_routing())["chosen"] is None
    await client.delete_routing_rule("vip")
    assert await client.list_routing_rules() == []


async def test_errors_keep_their_class_and_their_words(client: ManagerClient, agent_file: str) -> None:
    with pytest.raises(ServiceNotFound, match="'nobody'"):
        await client.get_service("nobody")
    with pytest.raises(AgentFileNotFound, match="nowhere"):
        await client.register_service("x", "/nowhere.py")
    await client.register_service("x", agent_file)
    with pytest.raises(NameTaken):
        await client.register_service("x", agent_file)
    with pytest.raises(VersionMismatch):
        await client.update_service("x", {"description": "d"}, expected_version=9)
    with pytest.raises(InvalidRequest) as refused:
        await client.update_service("x", {"max_sessions": -1})
    assert [field.path for field in refused.value.fields] == ["max_sessions"]
    with pytest.raises(InvalidRequest):
        await client.get_service("")


async def test_a_failed_start_tells_the_programs_last_words(client: ManagerClient, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no key')\n")
    with pytest.raises(ServiceFailedToStart, match="no key"):
        await client.register_service("x", str(broken), auto_start=True)
    assert (await client.get_service("x")).status is ServiceStatus.ERROR


async def test_more_services_than_a_page_holds_are_all_listed(
    client: ManagerClient, manager: AgentManager, agent_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await manager.register_service(f"s{number}", agent_file)
    monkeypatch.setattr("agentmgr.client.rest.PAGE", 2)
    assert len(await client.list_services()) == 5


async def test_nobody_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    async with ManagerClient(tmp_path / "none.sock") as client:
        with pytest.raises(ManagerNotRunning, match=r"none\.sock"):
            await client.get_info()
        with pytest.raises(ManagerNotRunning):
            await client.get_events()


async def test_it_speaks_tcp_as_well(url: str) -> None:
    async with ManagerClient(url) as client:
        assert (await client.get_info())["supervising"] is True


async def test_logs_and_events_are_read_as_they_come(
    client: ManagerClient, manager: AgentManager, agent_file: str
) -> None:
    await client.register_service("x", agent_file, auto_start=True)
    async with client.read_logs("x") as pieces:
        assert b"agent" in b"".join([piece async for piece in pieces])
    async with client.events(since=0) as events:
        assert (await anext(events)).kind == "service.registered"
    with pytest.raises(ServiceNotFound):
        async with client.read_logs("nobody"):
            pass
    assert (await client.sessions.list()).items == ()


async def test_shutdown_is_asked_for_on_the_control_socket(
    client: ManagerClient, manager: AgentManager
) -> None:
    pid = manager.get_info()["pid"]
    assert await client.request_shutdown() == pid
    with trio.fail_after(60):
        await manager.wait_shutdown_requested()


def test_every_method_of_the_manager_is_there() -> None:
    """Except for what only makes sense in the manager's own process."""
    inside = {"run", "start", "stop", "listening", "log_path", "open_log", "serve_proxy", "subscribe"}
    inside |= {
        "wait_shutdown_requested",
        "add_routing_rule",
        "find_token",
        "hurry",
        "issue_ticket",
        "while_valid",
        "watch_service",
        "open_connections",  # `GET /connections` gives them in pages
    }
    inside |= {
        "get_figures",
        "get_stats_by_service",
        "get_database_timings",
        "get_dropped_facts",
    }  # `/metrics` shows them
    methods = {
        name
        for name, member in inspect.getmembers(AgentManager, inspect.isfunction)
        if not name.startswith("_")
    }
    assert methods - inside <= set(dir(ManagerClient))
    for name in methods - inside - {"test_routing"}:
        theirs = [*inspect.signature(getattr(AgentManager, name)).parameters]
        ours = [*inspect.signature(getattr(ManagerClient, name)).parameters]
        assert theirs == ours, name
