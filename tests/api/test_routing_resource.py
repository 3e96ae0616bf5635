"""`/routing` and `/connections`."""

from __future__ import annotations

from functools import partial

import httpx2
import pytest
import trio
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from agentmgr.manager import AgentManager
from tests.conditions import heard

VIP = {
    "name": "vip-routing",
    "priority": 1,
    "conditions": [{"field": "user_agent", "operator": "contains", "value": "VIP", "case_sensitive": False}],
    "target_strategy": "least_connections",
    "target_tags": ["premium"],
    "description": "Route VIP clients to premium services",
}


async def test_a_rule_is_made_read_changed_and_deleted(http: httpx2.AsyncClient) -> None:
    made = await http.post("/routing/rules", json=VIP)
    assert made.status_code == 201
    rule = made.json()
    assert made.headers["Location"] == f"/api/v1/routing/rules/{rule['rule_id']}"
    assert rule["conditions"] == VIP["conditions"]
    assert (await http.get("/routing/rules/vip-routing")).json() == rule

    changed = await http.patch(
        f"/routing/rules/{rule['rule_id']}",
        json={"enabled": False},
        headers={"If-Match": made.headers["ETag"]},
    )
    assert changed.status_code == 200
    assert changed.json() == {**rule, "enabled": False, "version": 2}

    stale = {"If-Match": made.headers["ETag"]}
    for response in (
        await http.patch("/routing/rules/vip-routing", json={"enabled": True}, headers=stale),
        await http.delete("/routing/rules/vip-routing", headers=stale),
    ):
        assert (response.status_code, response.json()["code"]) == (412, "version_mismatch")

    deleted = await http.delete("/routing/rules/vip-routing")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert "Content-Type" not in deleted.headers
    assert (await http.get("/routing/rules")).json()["items"] == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"conditions": [{"field": "path", "operator": "like"}]}, "conditions[0].operator"),
        ({"priority": "1"}, "priority"),
        ({"rule_id": "mine"}, "rule_id"),
        ({"target_tags": ["a b"]}, "target_tags"),
        ({"conditions": [{"field": "header.a\r\nb", "operator": "exists"}]}, "conditions[0].field"),
        (
            {"conditions": [{"field": "path", "operator": "equals", "value": "\x1b]0;P\7"}]},
            "conditions[0].value",
        ),
        ({"hash_key": "header.a\0"}, "hash_key"),
        ({"target_services": ["a\n"]}, "target_services[0]"),
    ],
)
async def test_a_bad_rule_is_refused_by_the_path(
    http: httpx2.AsyncClient, change: dict[str, object], path: str
) -> None:
    response = await http.post("/routing/rules", json={**VIP, **change})
    assert response.status_code == 400
    assert path in [error["path"] for error in response.json()["errors"]]
    await http.post("/routing/rules", json=VIP)
    response = await http.patch("/routing/rules/vip-routing", json=change)
    assert response.status_code == 400
    assert path in [error["path"] for error in response.json()["errors"]]


async def test_rules_are_listed_in_the_order_in_which_they_are_tried(http: httpx2.AsyncClient) -> None:
    for name, priority in (("last", 100), ("first", -5), ("second", 7), ("third", 7)):
        await http.post("/routing/rules", json={"name": name, "priority": priority})
    items = (await http.get("/routing/rules?limit=3")).json()["items"]
    assert [rule["name"] for rule in items] == ["first", "second", "third"]


async def test_a_rehearsal_says_which_rule_a_client_meets(http: httpx2.AsyncClient, agent_file: str) -> None:
    await http.post("/routing/rules", json=VIP)
    await http.post(
        "/services?wait=true",
        json={
            "name": "premium-1", "agent_factory_path": agent_file, "tags": ["premium"], "auto_start": True,
        },
    )  # fmt: skip
    decision = (await http.post("/routing/test", json={"headers": {"User-Agent": "a vip client"}})).json()
    assert (decision["rule"], decision["service"]) == ("vip-routing", "premium-1")
    decision = (await http.post("/routing/test", json={"path": "/services/nobody"})).json()
    assert decision["chosen"] is None
    assert decision["code"]


async def test_connections_are_listed_and_really_closed(
    http: httpx2.AsyncClient, manager: AgentManager, nursery: trio.Nursery, agent_file: str
) -> None:
    body = {"name": "echo", "agent_factory_path": agent_file, "auto_start": True}
    assert (await http.post("/services?wait=true", json=body)).status_code == 201
    port = await nursery.start(partial(manager.serve_proxy, "localhost", 0))

    async def look_and_close() -> None:
        (connection,) = (await http.get("/connections?service=echo")).json()["items"]
        assert connection["service_name"] == "echo"
        assert (await http.get("/connections?service=other")).json()["items"] == []
        assert (await http.get("/stats")).json()["connections"]["total_connections"] == 1
        response = await http.delete(f"/connections/{connection['connection_id']}?code=4000&reason=bye")
        assert response.status_code == 204

    def converse() -> None:
        # Not trio-websocket's client: it leaves its socket open when the server closes first.
        with connect(f"ws://localhost:{port}/services/echo") as client:
            client.send("hello")
            assert heard(client) == "echo: hello"
            trio.from_thread.run(look_and_close)
            with pytest.raises(ConnectionClosedError) as closed:
                client.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "bye")

    await trio.to_thread.run_sync(converse)
    with trio.fail_after(60):
        while (await http.get("/connections")).json()["total"]:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("query", ["code=1006", "code=999", "code=5000", "code=x", f"reason={'x' * 124}"])
async def test_a_close_code_that_must_not_travel_is_refused(http: httpx2.AsyncClient, query: str) -> None:
    assert (await http.delete(f"/connections/c?{query}")).status_code == 400
