"""Each request has an id, which its client and the log have in common."""

from __future__ import annotations

import logging

import httpx2
import pytest


def ids(caplog: pytest.LogCaptureFixture, message: str) -> list[str]:
    return [r.__dict__["request_id"] for r in caplog.records if r.getMessage().startswith(message)]


async def test_the_answer_and_the_log_have_the_same_id(
    http: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentmgr.api")
    seen = [(await http.get("/info")).headers["X-Request-Id"] for _ in range(2)]
    assert ids(caplog, "GET /api/v1/info: 200") == seen
    assert seen[0] != seen[1]


async def test_an_id_that_comes_along_is_kept(
    http: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentmgr.api")
    response = await http.get("/nowhere", headers={"X-Request-Id": "edge-17.a"})
    assert response.headers["X-Request-Id"] == "edge-17.a"
    assert ids(caplog, "GET /api/v1/nowhere: 404") == ["edge-17.a"]


@pytest.mark.parametrize("odd", ["", "a b", "x" * 129])
async def test_an_id_that_is_none_is_replaced(http: httpx2.AsyncClient, odd: str) -> None:
    response = await http.get("/info", headers={"X-Request-Id": odd})
    assert response.headers["X-Request-Id"].startswith("req_")


async def test_what_changes_something_is_told_and_what_only_looks_is_not(
    http: httpx2.AsyncClient, agent_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentmgr.api")
    await http.get("/services")
    await http.post("/services", json={"name": "x", "agent_factory_path": agent_file})
    await http.post("/services", json={"name": "x", "agent_factory_path": agent_file})
    said = [record.getMessage() for record in caplog.records if record.name == "agentmgr.api"]
    assert said == ["POST /api/v1/services: 201"]


async def test_no_query_and_no_line_break_reaches_the_log(
    http: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentmgr")
    await http.get("/services/a%0D%0AFORGED?key=hidden&x=hidden")
    assert "hidden" not in caplog.text
    assert ids(caplog, "GET /api/v1/services/a%0D%0AFORGED: 400")


async def test_the_whole_id_of_a_session_does_not_reach_the_log(
    http: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentmgr.api")
    await http.get(f"/sessions/ses_{'0123456789' * 4}.ins_0123456789abcdef/events")
    assert ids(caplog, "GET /api/v1/sessions/ses_01234567…/events: 404")
