"""`/services`: register, read, change, run, unregister; over real HTTP, with real processes."""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx2
import pytest
import trio

from agentmgr.manager import AgentManager


async def register(http: httpx2.AsyncClient, name: str, agent_file: str, **more: Any) -> dict[str, Any]:
    response = await http.post(
        "/services", json={"name": name, "agent_factory_path": agent_file, "restart_delay": 0, **more}
    )
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_service_is_registered_with_every_field_flat(
    http: httpx2.AsyncClient, agent_file: str
) -> None:
    response = await http.post(
        "/services",
        json={
            "name": "my-service",
            "agent_factory_path": agent_file,
            "description": "My test service",
            "tags": ["test"],
            "max_sessions": 10,
            "session_timeout": 60,
            "env": {"KEY": "value"},
        },
    )
    assert response.status_code == 201
    service = response.json()
    assert response.headers["Location"] == f"/api/v1/services/{service['service_id']}"
    assert response.headers["ETag"] == '"1"'
    assert service["name"] == "my-service"
    assert service["tags"] == ["test"]
    assert service["status"] == service["desired_status"] == "stopped"
    assert service["config"]["max_sessions"] == 10
    assert service["config"]["session_timeout"] == 60.0
    for ref in (service["service_id"], "my-service"):
        assert (await http.get(f"/services/{ref}")).json() == service


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"name": "x", "agent_factory_path": "{}", "max_sessions": "12"}, "max_sessions"),
        ({"name": "x", "agent_factory_path": "{}", "max_sessions": -1}, "max_sessions"),
        ({"name": "x", "agent_factory_path": "{}", "tags": "abc"}, "tags"),
        ({"name": "x", "agent_factory_path": "{}", "auto_start": 1}, "auto_start"),
        ({"name": "x", "agent_factory_path": "{}", "colour": "red"}, "colour"),
        ({"name": "x y", "agent_factory_path": "{}"}, "name"),
        ({"name": "x", "agent_factory_path": "{}", "port": 70000}, "port"),
        ({"agent_factory_path": "{}"}, "name"),
        ({"name": "x", "agent_factory_path": "{}", "env": {"A": 1}}, "env['A']"),
        ({"name": "x", "agent_factory_path": "/\0"}, "agent_factory_path"),
        ({"name": "x\0", "agent_factory_path": "{}"}, "name"),
        ({"name": "x", "agent_factory_path": "{}", "description": "a\0"}, "description"),
        ({"name": "x", "agent_factory_path": "{}", "tags": ["a\0"]}, "tags"),
        ({"name": "x", "agent_factory_path": "{}", "host": "a\0"}, "host"),
        ({"name": "x", "agent_factory_path": "{}", "after": ["a\0"]}, "after"),
        ({"name": "x", "command": ["a", "\0"]}, "command"),
        *(
            ({"name": "x", "agent_factory_path": "{}", field: value}, field)
            for field in ("cwd", "python", "env_file")
            for value in ("\0", "/\0", "a\0b")
        ),
        ({"name": "x", "agent_factory_path": "{}", "env": {"A": "\0"}}, "env"),
        ({"name": "x", "agent_factory_path": "{}", "env": {"A\0": "1"}}, "env"),
    ],
)
async def test_a_bad_field_is_named_by_its_path(
    http: httpx2.AsyncClient, agent_file: str, body: dict[str, Any], path: str
) -> None:
    body = {key: agent_file if value == "{}" else value for key, value in body.items()}
    response = await http.post("/services", json=body)
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "invalid_request"
    assert path in [error["path"] for error in problem["errors"]]
    assert (await http.get("/services")).json()["total"] == 0


async def test_all_bad_fields_are_named_at_once(http: httpx2.AsyncClient) -> None:
    response = await http.post("/services", json={"name": 1, "port": "x", "colour": "red"})
    assert {error["path"] for error in response.json()["errors"]} == {"name", "port", "colour"}


async def test_a_file_that_is_not_there_is_422(http: httpx2.AsyncClient) -> None:
    response = await http.post("/services", json={"name": "x", "agent_factory_path": "/nowhere/agent.py"})
    assert response.status_code == 422
    assert response.json()["code"] == "agent_file_not_found"
    assert "/nowhere/agent.py" in response.json()["detail"]
    response = await http.post("/services", json={"name": "x", "agent_factory_path": "x" * 100_000})
    assert response.status_code == 422
    assert "File name too long" in response.json()["detail"]


async def test_a_taken_name_is_409(http: httpx2.AsyncClient, agent_file: str) -> None:
    await register(http, "x", agent_file)
    response = await http.post("/services", json={"name": "x", "agent_factory_path": agent_file})
    assert (response.status_code, response.json()["code"]) == (409, "name_taken")


async def test_a_change_touches_what_is_given_and_nothing_else(
    http: httpx2.AsyncClient, agent_file: str
) -> None:
    await register(http, "x", agent_file, description="before", max_sessions=5)
    response = await http.patch("/services/x", json={"max_sessions": 7, "tags": ["a"]})
    assert response.status_code == 200
    changed = response.json()
    assert (changed["config"]["max_sessions"], changed["tags"]) == (7, ["a"])
    assert (changed["description"], changed["version"]) == ("before", 2)


async def test_a_bad_change_is_refused_by_its_path(http: httpx2.AsyncClient, agent_file: str) -> None:
    await register(http, "x", agent_file)
    response = await http.patch("/services/x", json={"max_sessions": True})
    assert response.status_code == 400
    assert [error["path"] for error in response.json()["errors"]] == ["max_sessions"]
    response = await http.patch("/services/x", json=["max_sessions"])
    assert response.status_code == 400


async def test_a_replacement_puts_what_is_left_out_to_its_default(
    http: httpx2.AsyncClient, agent_file: str
) -> None:
    await register(http, "x", agent_file, description="before", max_sessions=5)
    response = await http.put("/services/x", json={"name": "y", "agent_factory_path": agent_file})
    assert response.status_code == 200
    replaced = response.json()
    assert (replaced["name"], replaced["description"], replaced["config"]["max_sessions"]) == ("y", "", 0)
    assert (await http.get("/services/x")).status_code == 404


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
async def test_if_match_lets_nobody_overwrite_what_he_has_not_seen(
    http: httpx2.AsyncClient, agent_file: str, method: str
) -> None:
    await register(http, "x", agent_file)
    body = {"name": "x", "agent_factory_path": agent_file}
    content = {} if method == "DELETE" else {"json": body}
    for stale in ('"7"', '"nonsense"', f'"{"9" * 5000}"'):
        response = await http.request(method, "/services/x", headers={"If-Match": stale}, **content)
        assert (response.status_code, response.json()["code"]) == (412, "version_mismatch")
    response = await http.request(method, "/services/x", headers={"If-Match": '"1"'}, **content)
    assert response.status_code == 200


@pytest.mark.parametrize("version", ["", '"7"', '"nonsense"'])
async def test_a_change_that_is_wrong_is_said_to_be_so_before_its_version_is_judged(
    http: httpx2.AsyncClient, agent_file: str, version: str
) -> None:
    await register(http, "x", agent_file)
    for body, status in (({"port": 70_000}, 400), ({"port": 7000}, 412)):
        response = await http.patch("/services/x", headers={"If-Match": version}, json=body)
        assert response.status_code == status, response.text


async def test_if_match_star_means_any_version(http: httpx2.AsyncClient, agent_file: str) -> None:
    await register(http, "x", agent_file)
    response = await http.patch("/services/x", json={"description": "d"}, headers={"If-Match": "*"})
    assert response.status_code == 200


async def test_lists_filter_by_status_tags_and_name(http: httpx2.AsyncClient, agent_file: str) -> None:
    await register(http, "weather-a", agent_file, tags=["weather", "x"])
    await register(http, "weather-b", agent_file, tags=["weather"])
    await register(http, "other", agent_file)

    async def names(query: str) -> list[str]:
        response = await http.get(f"/services?{query}")
        assert response.status_code == 200, response.text
        return [service["name"] for service in response.json()["items"]]

    assert await names("tags=weather") == ["weather-a", "weather-b"]
    assert await names("tags=x,y") == ["weather-a"]
    assert await names("tags=x&tags=y") == ["weather-a"]
    assert await names("name=oth") == ["other"]
    assert await names("status=running") == []
    assert len(await names("status=stopped")) == 3


async def test_lists_page_by_cursor(http: httpx2.AsyncClient, agent_file: str) -> None:
    for number in range(5):
        await register(http, f"s{number}", agent_file)
    first = (await http.get("/services?limit=2")).json()
    assert (first["total"], first["limit"]) == (5, 2)
    await register(http, "s00", agent_file)  # what comes before the cursor moves nothing behind it
    second = (await http.get("/services", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    third = (await http.get("/services", params={"limit": 2, "cursor": second["next_cursor"]})).json()
    names = [service["name"] for page in (first, second, third) for service in page["items"]]
    assert names == ["s0", "s1", "s2", "s3", "s4"]
    assert third["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=%00", "cursor"),
        ("cursor=abc", "cursor"),
        ("status=happy", "status"),
        ("color=red", "color"),
    ],
)
async def test_a_bad_query_is_refused_by_its_name(http: httpx2.AsyncClient, query: str, path: str) -> None:
    response = await http.get(f"/services?{query}")
    assert response.status_code == 400
    assert [error["path"] for error in response.json()["errors"]] == [path]


async def test_from_registration_to_the_end_as_the_guide_does_it(
    http: httpx2.AsyncClient, agent_file: str
) -> None:
    service = (await http.post(
        "/services?wait=true",
        json={"name": "test-service", "agent_factory_path": agent_file, "tags": ["test"], "auto_start": True},
    )).json()  # fmt: skip
    ref = service["service_id"]
    assert service["status"] == "running"
    assert service["endpoint"].startswith("ws://")

    started = await http.post(f"/services/{ref}/start")
    assert started.status_code == 200  # it runs already: no error

    health = await http.get(f"/services/{ref}/health", params={"history": 5})
    assert health.status_code == 200
    assert (health.json()["status"], health.json()["ok"]) == ("healthy", True)
    assert health.json()["history"]

    stats = (await http.get(f"/services/{ref}/stats")).json()
    assert stats["connections"]["active"] == 0

    instances = (await http.get(f"/services/{ref}/instances")).json()
    assert [i["slot"] for i in instances["items"]] == [0]

    system = (await http.get("/stats")).json()
    assert system["services"]["running"] == 1
    assert system["health"]["healthy"] == 1

    scaled = await http.post(f"/services/{ref}/scale?wait=true", json={"instances": 2})
    assert (scaled.status_code, len(scaled.json()["instances"])) == (200, 2)
    assert '"fields":"instances"' in (await http.get("/events?since=0&follow=false")).text

    ranged = (await http.post(f"/services/{ref}/scale?wait=true", json={"instances": "1..4"})).json()
    assert (ranged["config"]["instances"], ranged["wanted_instances"]) == ("1..4", 2)
    (row,) = (await http.get("/services?fields=rows&sort=-instances")).json()["items"]
    assert row["instances"] == 2
    refused = await http.post(f"/services/{ref}/scale", json={"instances": "5..2"})
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (400, "instances")

    restarted = await http.post(f"/services/{ref}/restart?wait=true")
    assert restarted.status_code == 200
    old = {i["instance_id"] for i in scaled.json()["instances"]}
    assert not old & {i["instance_id"] for i in restarted.json()["instances"]}

    stopped = await http.post(f"/services/{ref}/stop?wait=true")
    assert (stopped.status_code, stopped.json()["status"]) == (200, "stopped")
    assert (await http.get(f"/services/{ref}/health")).json()["code"] == "wrong_state"

    gone = await http.delete(f"/services/{ref}")
    assert (gone.status_code, gone.json()["name"]) == (200, "test-service")
    assert (await http.get(f"/services/{ref}")).status_code == 404


async def test_without_wait_the_answer_comes_at_once(
    http: httpx2.AsyncClient, manager: AgentManager, tmp_path: Any
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(600)\ndef create_agent(): ...\n")
    await register(http, "slow", str(slow))
    with trio.fail_after(60):
        response = await http.post("/services/slow/start")
    assert (response.status_code, response.json()["desired_status"]) == (202, "running")
    with trio.fail_after(60):
        response = await http.post("/services/slow/stop?force=true&wait=true")
    assert response.status_code == 200


async def test_a_program_that_fails_is_422_with_its_last_words(
    http: httpx2.AsyncClient, tmp_path: Any
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def create_agent():\n    return unknown_name\n")
    await register(http, "broken", str(broken))
    response = await http.post("/services/broken/start?wait=true")
    assert (response.status_code, response.json()["code"]) == (422, "service_failed_to_start")
    assert "unknown_name" in response.json()["detail"]
    service = (await http.get("/services/broken")).json()
    assert service["status"] == "error"
    assert "unknown_name" in service["error_message"]


async def test_a_client_that_goes_away_cancels_its_waiting_and_not_the_work(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    new = {"name": "x", "agent_factory_path": agent_file, "auto_start": True}
    with manager.subscribe() as events, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(http.post, "/services?wait=true", json=new))
            async for event in events:
                if event.kind == "instance.starting":
                    break
            nursery.cancel_scope.cancel()
        async for event in events:
            if event.kind == "instance.running":
                break
    assert manager.get_service("x").status == "running"


async def test_secrets_in_the_environment_are_kept_and_never_shown(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str
) -> None:
    service = await register(
        http, "x", agent_file, env={"DB_PASS": "sk-secret", "LANG": "zh"}, env_public=["LANG"]
    )
    assert service["config"]["env"] == {"DB_PASS": "***", "LANG": "zh"}
    for path in ("/services", "/services/x", "/events?since=0&follow=false"):
        assert "sk-secret" not in (await http.get(path)).text
    # What was read may be given back: what is hidden stays as it is.
    changed = await http.patch("/services/x", json={"env": {"DB_PASS": "***", "LANG": "en"}})
    assert changed.json()["config"]["env"] == {"DB_PASS": "***", "LANG": "en"}
    (spec,) = manager._live().registry.services()
    assert spec.config.env == {"DB_PASS": "sk-secret", "LANG": "en"}
    hidden = await http.patch("/services/x", json={"env_public": []})
    assert hidden.json()["config"]["env"] == {"DB_PASS": "***", "LANG": "***"}
    assert (await http.get("/environments")).status_code == 404, "on the control socket only"


async def test_a_hidden_value_is_never_taken_for_a_value(http: httpx2.AsyncClient, agent_file: str) -> None:
    await register(http, "x", agent_file, env={"A": "1"})
    for method, path, body in (
        ("POST", "/services", {"name": "y", "agent_factory_path": agent_file, "env": {"A": "***"}}),
        ("PATCH", "/services/x", {"env": {"A": "***", "B": "***"}}),
        ("PUT", "/services/x", {"name": "x", "agent_factory_path": agent_file, "env": {"B": "***"}}),
    ):
        response = await http.request(method, path, json=body)
        assert (response.status_code, response.json()["errors"][0]["path"]) == (400, "env"), response.text
    assert (await http.get("/services")).json()["total"] == 1


async def test_work_that_was_asked_for_is_done_though_the_client_has_left(
    http: httpx2.AsyncClient, manager: AgentManager, agent_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(http, "x", agent_file)
    begun, may_end, done = trio.Event(), trio.Event(), trio.Event()

    async def slow_stop(*_: object, **__: object) -> object:
        begun.set()
        await may_end.wait()
        done.set()
        return manager.get_service("x")

    monkeypatch.setattr(manager, "stop_service", slow_stop)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(http.post, "/services/x/stop?wait=true")
            await begun.wait()
            nursery.cancel_scope.cancel()
        assert (await http.get("/info")).status_code == 200  # the server has seen the client leave
        may_end.set()
        await done.wait()
