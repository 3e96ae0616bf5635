"""Conversations over REST: a real manager, a real host, a real journal."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import pytest
import trio

from agentmgr.client import ManagerClient, open_session
from agentmgr.client.session import AgentSession
from agentmgr.manager import AgentManager
from agentmgr.models import ServiceConfig, ServiceStatus

AGENT = """
import trio

def create_agent():
    async def answer(message, session):
        session.state["last"] = str(message)
        if message == "ask":
            decision = await session.confirm("pay", {"amount": 7}, message="really?")
            return "paid" if decision else "not paid"
        if message == "long":
            yield "begun"
            await trio.sleep_forever()
        await session.emit("agent.tool_call", {"tool": "lookup", "args": {}})
        yield f"echo: {message}"
    return answer
"""
AGENT = AGENT.replace(
    'return "paid" if decision else "not paid"',
    'yield "paid" if decision else "not paid"\n            return',
)

SECRET = "what nobody else is to read"


@pytest.fixture
async def client(url: str) -> ManagerClient:
    return ManagerClient(url)


@pytest.fixture
async def endpoint(manager: AgentManager, tmp_path: Any) -> str:
    path = tmp_path / "talking_agent.py"
    path.write_text(AGENT)
    service = await manager.register_service("talk", str(path), auto_start=True)
    assert service.endpoint is not None
    return service.endpoint


@asynccontextmanager
async def conversation(endpoint: str, *texts: str) -> AsyncIterator[AgentSession]:
    async with open_session(endpoint) as session:
        for text in texts:
            await session.ask(text)
        yield session


async def only(http: httpx2.AsyncClient, **params: str) -> dict[str, Any]:
    items = (await http.get("/services/talk/sessions", params=params)).json()["items"]
    assert len(items) == 1
    found: dict[str, Any] = items[0]
    return found


async def events(
    client: ManagerClient,
    session_id: str | None,
    until: str = "",
    *,
    since: int = 0,
    follow: bool = True,
    messages: bool = False,
) -> list[Any]:
    """To the first of that name."""
    found = []
    with trio.fail_after(20):
        async with client.sessions.events(
            str(session_id), since=since, follow=follow, messages=messages
        ) as said:
            async for event in said:
                found.append(event)
                if event["event"] == until:
                    break
    return found


async def bearer(manager: AgentManager, *scopes: str) -> dict[str, str]:
    _, key = await manager.create_token("-".join(scopes).replace(":", "-"), scopes)
    return {"Authorization": f"Bearer {key}"}


async def test_a_conversation_is_listed_and_shown(http: httpx2.AsyncClient, endpoint: str) -> None:
    async with conversation(endpoint, "hello") as session:
        listed = await only(http)
        assert (listed["session_id"], listed["service"]) == (session.session_id, "talk")
        assert (listed["state"], listed["turns"]) == ("idle", 1)
        shown = (await http.get(f"/sessions/{session.session_id}")).json()
    (turn,) = shown["history"]
    assert (turn["message"], turn["answer"], turn["status"]) == ("hello", "echo: hello", "ended")
    assert turn["tools"] == ["lookup"]
    assert turn["accepted_at"] <= turn["started_at"] <= turn["ended_at"]
    assert shown["session_state"] == {"last": "hello"}
    assert await only(http, state="idle", q=str(session.session_id)[:20]) == listed
    for params in ({"state": "running"}, {"owner": "ann"}, {"q": "nothing"}):
        assert (await http.get("/services/talk/sessions", params=params)).json()["items"] == []
    assert (await http.get("/services/talk/sessions", params={"state": "x"})).status_code == 400
    assert (await http.get("/services/nosuch/sessions")).json()["code"] == "service_not_found"
    for path in ("", "/events", "/export"):
        missing = await http.get(f"/sessions/ses_nosuch{path}")
        assert (missing.status_code, missing.json()["code"]) == (404, "session_not_found")


async def test_lists_page(http: httpx2.AsyncClient, endpoint: str) -> None:
    for _ in range(3):
        async with conversation(endpoint, "hello"):
            pass
    first = (await http.get("/services/talk/sessions", params={"limit": 2})).json()
    cursor = first["next_cursor"]
    rest = (await http.get("/services/talk/sessions", params={"limit": 2, "cursor": cursor})).json()
    assert (len(first["items"]), len(rest["items"]), rest["next_cursor"]) == (2, 1, None)
    assert (await http.get("/services/talk/sessions", params={"cursor": "x"})).status_code == 400


async def test_the_sessions_of_all_services_page_in_one_list(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str, tmp_path: Any
) -> None:
    other = await manager.register_service("other", str(tmp_path / "talking_agent.py"), auto_start=True)
    for where in (endpoint, other.endpoint, endpoint):
        async with conversation(str(where), "hello"):
            pass
    paged: list[dict[str, Any]] = []
    cursor = ""
    while cursor is not None:
        params = {"limit": "1", **({"cursor": cursor} if cursor else {})}
        found = (await http.get("/sessions", params=params)).json()
        paged += found["items"]
        cursor = found["next_cursor"]
    assert [one["service"] for one in paged] == ["talk", "other", "talk"]
    assert (await http.get("/sessions")).json()["items"] == paged
    assert (await http.get("/sessions", params={"service": "other"})).json()["items"] == [paged[1]]
    for name in ("nosuch", ""):
        assert (await http.get("/sessions", params={"service": name})).status_code == 404
    assert (await http.get("/sessions", params={"cursor": "x"})).status_code == 400
    reader = await bearer(manager, "read")
    shown = (await http.get("/sessions", headers=reader)).json()["items"]
    assert [len(one["session_id"]) for one in shown] == [13, 13, 13]
    assert (await http.get("/sessions", headers=reader, params={"q": "ses_"})).status_code == 403


async def test_a_journal_that_cannot_be_read_is_named_beside_the_sessions_of_the_others(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str, tmp_path: Any
) -> None:
    async with conversation(endpoint, "hello"):
        pass
    broken = await manager.register_service("broken", str(tmp_path / "talking_agent.py"))
    manager.sessions.journal(broken).write_bytes(b"not a database" * 1000)
    found = (await http.get("/sessions")).json()
    assert ([one["service"] for one in found["items"]], found["unreadable"]) == (["talk"], ["broken"])


async def test_events_come_all_and_then_live(
    http: httpx2.AsyncClient, client: ManagerClient, endpoint: str
) -> None:
    async with conversation(endpoint, "one") as session:
        past = await events(client, session.session_id, "agent.final_answer")
        assert [event["seq"] for event in past] == list(range(1, len(past) + 1))
        async with trio.open_nursery() as nursery:
            live: list[Any] = []

            async def watch() -> None:
                last = past[-1]["seq"]
                live.extend(await events(client, session.session_id, "agent.final_answer", since=last))

            nursery.start_soon(watch)
            await session.ask("two")
        assert live[0]["seq"] == past[-1]["seq"] + 1
        assert live[-1]["content"] == "echo: two"
        over = await events(client, session.session_id, follow=False)
        assert len(over) == len(past) + len(live)


async def test_events_come_with_what_the_person_said_before_what_it_led_to(
    http: httpx2.AsyncClient, client: ManagerClient, endpoint: str
) -> None:
    async with conversation(endpoint, "one", "two") as session:
        everything = partial(events, client, session.session_id, messages=True)
        found = await everything(follow=False)
        names = ["user.message", "agent.tool_call", "agent.partial_answer", "agent.final_answer"]
        assert [event["event"] for event in found] == ["agent.session_created", *names, *names]
        assert (found[1]["content"], found[5]["content"]) == ("one", "two")
        assert found[5]["step_id"] == found[6]["step_id"]
        assert "seq" not in found[5]
        assert await everything(follow=False, since=found[4]["seq"]) == found[5:]
        rest = await everything(follow=False, since=found[6]["seq"])
        assert rest == found[7:], "the turn had begun before"
        await session.send("ask")
        live = await everything("agent.user_confirm", since=found[-1]["seq"])
        assert [event["event"] for event in live] == ["user.message", "agent.user_confirm"]
        await session.send("waits until the other turn is over")
        await http.post(f"/sessions/{session.session_id}/cancel")
        live = await everything("agent.final_answer", since=live[-1]["seq"])
        assert [event["event"] for event in live] == ["agent.interrupted", *names]


async def test_a_person_speaks_answers_and_cancels(http: httpx2.AsyncClient, endpoint: str) -> None:
    async with conversation(endpoint, "hello") as session:
        path = f"/sessions/{session.session_id}"
        said = await http.post(f"{path}/messages", json={"content": "from elsewhere", "step_id": "mine"})
        assert (said.status_code, said.json()) == (
            202,
            {"session_id": session.session_id, "step_id": "mine"},
        )
        while (event := await session.receive()).event != "agent.final_answer":
            pass
        assert (event.content, event.step_id) == ("echo: from elsewhere", "mine")
        again = await http.post(f"{path}/messages", json={"content": "x", "step_id": "mine"})
        assert (again.status_code, again.json()["code"]) == (409, "wrong_state")

        await http.post(f"{path}/messages", json={"content": "ask"})
        while (event := await session.receive()).event != "agent.user_confirm":
            pass
        (question,) = (await http.get("/questions")).json()["items"]
        assert (question["session_id"], question["service"]) == (session.session_id, "talk")
        assert (question["content"]["tool"], question["step_id"]) == ("pay", event.step_id)
        assert (await only(http))["state"] == "asking"
        answer = {"step_id": event.step_id, "confirmed": True}
        assert (await http.post(f"{path}/answers", json=answer)).status_code == 204
        while (event := await session.receive()).event != "agent.final_answer":
            pass
        assert event.content == "paid"
        late = await http.post(f"{path}/answers", json=answer)
        assert (late.status_code, late.json()["code"]) == (409, "wrong_state")
        assert (await http.get("/questions")).json()["items"] == []

        assert (await http.post(f"{path}/cancel")).status_code == 409
        await http.post(f"{path}/messages", json={"content": "long"})
        while (event := await session.receive()).event != "agent.partial_answer":
            pass
        assert (await http.post(f"{path}/cancel")).status_code == 204
        while (event := await session.receive()).event != "agent.interrupted":
            pass


async def test_what_is_said_is_answered_though_no_other_client_is_there(
    http: httpx2.AsyncClient, client: ManagerClient, manager: AgentManager, endpoint: str
) -> None:
    async with conversation(endpoint, "hello") as session:
        pass
    await http.post(f"/sessions/{session.session_id}/messages", json={"content": "alone"})
    found = await events(client, session.session_id, "agent.final_answer", since=session.last_seq)
    assert found[-1]["content"] == "echo: alone"


async def test_a_service_that_is_stopped_is_read_and_not_spoken_with(
    http: httpx2.AsyncClient, client: ManagerClient, manager: AgentManager, endpoint: str
) -> None:
    async with conversation(endpoint, "hello") as session:
        pass
    await manager.stop_service("talk")
    path = f"/sessions/{session.session_id}"
    assert (await only(http))["state"] == "hibernated"
    assert (await http.get(path)).json()["history"][0]["answer"] == "echo: hello"
    assert len(await events(client, session.session_id, follow=False)) > 2
    refused = await http.post(f"{path}/messages", json={"content": "x"})
    assert refused.status_code == 409
    assert "agentmgr start talk" in refused.json()["detail"]
    await manager.start_service("talk")
    assert (await http.post(f"{path}/messages", json={"content": "again"})).status_code == 202
    found = await events(client, session.session_id, "agent.final_answer", since=session.last_seq)
    assert found[-1]["content"] == "echo: again"


async def test_what_is_erased_is_gone(http: httpx2.AsyncClient, manager: AgentManager, endpoint: str) -> None:
    async with conversation(endpoint, SECRET) as session:
        path = f"/sessions/{session.session_id}"
        assert (await http.delete(path)).status_code == 204
        while (event := await session.receive()).event != "agent.session_end":
            pass
        assert event.content["reason"] == "ended"
        for asked in (http.get(path), http.get(f"{path}/export"), http.delete(path)):
            assert (await asked).json()["code"] == "session_not_found"
        assert (await http.get("/services/talk/sessions")).json()["items"] == []
    await manager.stop_service("talk")
    for file in manager.paths.sessions.iterdir():
        assert SECRET.encode() not in file.read_bytes(), file


async def test_unregistering_says_how_many_sessions_it_would_erase(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str
) -> None:
    for _ in range(2):
        async with conversation(endpoint, SECRET):
            pass
    refused = await http.delete("/services/talk")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "2 sessions" in refused.json()["detail"]
    assert (await http.delete("/services/talk?force=true")).status_code == 200
    assert not list(manager.paths.sessions.glob("*.db*"))


async def test_a_damaged_journal_hides_no_other_services_questions(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str, agent_file: str
) -> None:
    other = await manager.register_service("other", agent_file)
    (manager.paths.sessions / f"{other.service_id}.db").write_bytes(b"no journal" * 1000)
    async with conversation(endpoint) as session:
        await session.send("ask")
        while (question := await session.receive()).event != "agent.user_confirm":
            pass
        assert len((await http.get("/questions")).json()["items"]) == 1
        assert (await http.get(f"/sessions/{session.session_id}")).status_code == 200
        for path in ("/services/other/sessions", "/sessions/ses_nosuch"):
            failed = await http.get(path)
            assert (failed.status_code, failed.json()["code"]) == (503, "storage_error")
            assert "sets it aside at its start or next use" in failed.json()["detail"]
        await session.respond(question, False)  # the instance's end would wait for it


async def test_an_export_has_all_that_is_kept(http: httpx2.AsyncClient, endpoint: str) -> None:
    async with conversation(endpoint, "one", "two") as session:
        response = await http.get(f"/sessions/{session.session_id}/export")
    assert response.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds[:3] == ["session", "turn", "turn"]
    assert set(kinds[3:]) == {"event"}
    assert [line["seq"] for line in lines[3:]] == list(range(1, len(lines) - 2))
    assert [line["answer"] for line in lines[1:3]] == ["echo: one", "echo: two"]


async def test_who_may_only_read_sees_no_content_and_no_way_in(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str
) -> None:
    async with conversation(endpoint, SECRET) as session:
        await session.send("ask")
        while (await session.receive()).event != "agent.user_confirm":
            pass
        reader, seer = await bearer(manager, "read"), await bearer(manager, "sessions", "read")
        client = await bearer(manager, "connect")
        seen = [
            await http.get("/services/talk/sessions", headers=reader),
            await http.get("/questions", headers=reader),
        ]
        for response in seen:
            assert response.status_code == 200
            assert len(response.json()["items"]) == 1
            assert SECRET not in response.text
            assert "really?" not in response.text
            assert str(session.session_id)[:16] not in response.text
        searched = await http.get("/services/talk/sessions", params={"q": "ses_1"}, headers=reader)
        assert (searched.status_code, searched.json()["code"]) == (403, "forbidden")
        for who in (reader, client):
            for session_id in (session.session_id, "ses_nosuch"):
                path = f"/sessions/{session_id}"
                for response in (
                    await http.get(path, headers=who),
                    await http.get(f"{path}/events", headers=who),
                    await http.get(f"{path}/export", headers=who),
                    await http.post(f"{path}/messages", json={"content": "x"}, headers=who),
                    await http.post(f"{path}/cancel", headers=who),
                    await http.post(f"{path}/answers", json={}, headers=who),
                    await http.delete(path, headers=who),
                ):
                    assert (response.status_code, response.json()["code"]) == (404, "session_not_found")
        assert (await http.get("/questions", headers=client)).status_code == 403
        path = f"/sessions/{session.session_id}"
        assert SECRET in (await http.get(path, headers=seer)).text
        assert (await http.post(f"{path}/cancel", headers=seer)).status_code == 204
        assert (await http.delete("/services/talk", headers=seer)).status_code == 403


async def test_a_manager_speaks_in_the_owners_name(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str, nursery: trio.Nursery
) -> None:
    port = await nursery.start(manager.serve_proxy, "localhost", 0)
    _, key = await manager.create_token("app", ["connect"])
    headers = {"Authorization": f"Bearer {key}"}
    admin = await bearer(manager, "admin")
    async with open_session(f"ws://localhost:{port}/services/talk", headers=headers) as session:
        await session.ask("hello")
        listed = await http.get("/services/talk/sessions", params={"owner": "app"}, headers=admin)
        assert [one["session_id"] for one in listed.json()["items"]] == [session.session_id]
        path = f"/sessions/{session.session_id}"
        said = await http.post(f"{path}/messages", json={"content": "for app"}, headers=admin)
        assert said.status_code == 202
        while (event := await session.receive()).event != "agent.final_answer":
            pass
        assert (event.content, event.step_id) == ("echo: for app", said.json()["step_id"])
        assert (await http.delete(path, headers=admin)).status_code == 204
        while (event := await session.receive()).event != "agent.session_end":
            pass


async def test_of_several_instances_the_one_that_has_the_session_is_spoken_with(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str
) -> None:
    service = await manager.scale_service("talk", 2)
    for instance in service.instances:
        async with open_session(f"ws://localhost:{instance.port}") as session:
            await session.ask("hello")
            shown = (await http.get(f"/sessions/{session.session_id}")).json()
            assert shown["instance_id"] == instance.instance_id
            path = f"/sessions/{session.session_id}/messages"
            assert (await http.post(path, json={"content": "again"})).status_code == 202
            while (event := await session.receive()).event != "agent.final_answer":
                pass
            assert event.content == "echo: again"


async def test_of_a_token_with_sessions_alone_lists_are_not_hidden(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str
) -> None:
    async with conversation(endpoint, "hello") as session:
        headers = await bearer(manager, "sessions")
        listed = await http.get("/services/talk/sessions", headers=headers)
        assert [one["session_id"] for one in listed.json()["items"]] == [session.session_id]
        assert (await http.get("/questions", headers=headers)).status_code == 200
        assert (await http.get("/services", headers=headers)).status_code == 403


async def test_a_service_that_keeps_nothing_has_no_list(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str
) -> None:
    await manager.update_service("talk", {"sessions": "memory"})
    service = await manager.restart_service("talk")
    assert isinstance(service.config, ServiceConfig)
    async with conversation(str(service.endpoint), "hello") as session:
        assert (await http.get("/services/talk/sessions")).json()["items"] == []
        assert (await http.get(f"/sessions/{session.session_id}")).status_code == 404


async def test_what_is_said_right_after_a_kill_is_for_the_next_instance(
    http: httpx2.AsyncClient, client: ManagerClient, manager: AgentManager, endpoint: str
) -> None:
    async with conversation(endpoint, "hello") as session:
        pass
    await manager.update_service("talk", {"restart_delay": 0.1})
    (instance,) = (await manager.restart_service("talk")).instances
    assert instance.pid is not None
    os.kill(instance.pid, signal.SIGKILL)
    said = await http.post(f"/sessions/{session.session_id}/messages", json={"content": "still there?"})
    assert (said.status_code, said.json()) == (202, said.json())
    found = await events(client, session.session_id, "agent.final_answer", since=session.last_seq)
    assert found[-1]["content"] == "echo: still there?"


async def test_a_kept_session_of_a_service_that_keeps_none_any_more_says_how_it_comes_back(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str
) -> None:
    async with conversation(endpoint, "hello") as session:
        pass
    await manager.update_service("talk", {"sessions": "memory"})
    await manager.restart_service("talk")
    assert (await only(http))["state"] == "hibernated"
    path = f"/sessions/{session.session_id}/messages"
    refused = await http.post(path, json={"content": "x"})
    assert (refused.status_code, refused.json()["code"]) == (409, "wrong_state")
    assert "agentmgr change talk --sessions durable" in refused.json()["detail"]
    await manager.update_service("talk", {"sessions": "durable"})
    await manager.restart_service("talk")
    assert (await http.post(path, json={"content": "x"})).status_code == 202


async def test_a_service_that_was_given_up_is_not_waited_for(
    http: httpx2.AsyncClient, manager: AgentManager, endpoint: str
) -> None:
    async with conversation(endpoint, "hello") as session:
        pass
    await manager.update_service("talk", {"restart": "never"})
    service = await manager.restart_service("talk")
    with manager.subscribe() as announced:
        os.kill(service.instances[0].pid or 0, signal.SIGKILL)
        while manager.get_service("talk").status is not ServiceStatus.ERROR:
            await announced.receive()
    refused = await http.post(f"/sessions/{session.session_id}/messages", json={"content": "x"})
    assert refused.status_code == 409
    assert "agentmgr status talk" in refused.json()["detail"]
