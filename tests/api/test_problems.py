"""Every refusal is a problem document (RFC 9457) with a stable code; nothing of ours leaks out."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import httpx2
import pytest
import trio
from werkzeug.exceptions import default_exceptions

from agentmgr import errors
from agentmgr.api import serve_api
from agentmgr.api.problems import status_of
from agentmgr.codec import to_json
from agentmgr.errors import AgentManagerError
from agentmgr.manager import AgentManager


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("GET", "/services/x", {}, 404, "service_not_found"),
        ("GET", "/routing/rules/x", {}, 404, "rule_not_found"),
        ("DELETE", "/connections/x", {}, 404, "connection_not_found"),
        ("PUT", "/services", {}, 405, "method_not_allowed"),
        ("GET", "/services", {"headers": {"Accept": "text/html"}}, 406, "not_acceptable"),
        ("POST", "/services", {"content": b"{}"}, 415, "unsupported_media_type"),
        ("POST", "/services", {"data": {"name": "x"}}, 415, "unsupported_media_type"),
        ("POST", "/services", {"json": "x" * 2**20}, 413, "request_entity_too_large"),
        ("GET", "/events", {"headers": {"Last-Event-ID": "x"}}, 400, "invalid_request"),
        ("GET", "/events", {"headers": {"Last-Event-ID": "9" * 19}}, 400, "invalid_request"),
        ("POST", "/backup", {"json": {"path": "/x\0"}}, 400, "invalid_request"),
        ("GET", "/services", {"params": {"cursor": "\0"}}, 400, "invalid_request"),
        ("DELETE", "/services/x", {"params": {"force": "9" * 5000}}, 400, "invalid_request"),
        ("GET", "/services", {"params": {"limit": "9" * 5000}}, 400, "invalid_request"),
        ("POST", "/shutdown", {}, 404, "not_found"),
        ("POST", "/listeners", {"json": {"kind": "proxy", "port": 0}}, 404, "not_found"),
    ],
)
async def test_a_refusal_says_what_is_wrong(
    http: httpx2.AsyncClient, method: str, path: str, options: Any, status: int, code: str
) -> None:
    response = await http.request(method, path, **options)
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert problem["title"]
    assert problem["detail"]
    assert problem["detail"] != default_exceptions[status].description, "that is Werkzeug's sentence"
    assert response.text == to_json(problem), "compact, as every other answer"


async def test_a_wrong_method_is_told_the_right_ones(http: httpx2.AsyncClient) -> None:
    response = await http.put("/services")
    assert {"GET", "POST"} <= set(response.headers["Allow"].replace(" ", "").split(","))


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b"\xc3(",
        b"{",
        b"",
        b"NaN",
        b"[" * 100_000,
        b'{"name": "\\ud800"}',
        b"null",
        b"[]",
        b'"x"',
    ],
    ids=["not-utf8", "bad-utf8", "cut", "empty", "nan", "deep", "half-character", "null", "list", "string"],
)
async def test_a_body_that_is_no_object_of_ours_is_400(http: httpx2.AsyncClient, body: bytes) -> None:
    response = await http.post("/services", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request"), response.text


async def test_a_bug_of_ours_shows_an_id_that_is_in_the_log_and_no_traceback(
    manager: AgentManager,
    http: httpx2.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> Any:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr(manager, "get_system_stats", broken)
    with caplog.at_level(logging.ERROR, "agentmgr.api"):
        response = await http.get("/stats")
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.__dict__["request_id"] == response.headers["X-Request-Id"]
    assert response.headers["X-Request-Id"] in response.json()["detail"]


async def test_a_manager_that_is_ending_is_503(manager: AgentManager, nursery: trio.Nursery) -> None:
    port = await nursery.start(partial(serve_api, manager, port=0))
    manager.request_shutdown()
    async with httpx2.AsyncClient(base_url=f"http://localhost:{port}/api/v1", timeout=60) as http:
        with trio.fail_after(60):
            while (response := await http.get("/services")).status_code == 200:
                await trio.lowlevel.checkpoint()
    assert (response.status_code, response.json()["code"]) == (503, "manager_not_running")


def test_every_error_of_ours_has_a_status() -> None:
    def tree(kind: type[AgentManagerError]) -> list[type[AgentManagerError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in tree(child))]

    ours = {AgentManagerError, errors.IllegalTransition, errors.ManagerError}  # nobody's fault but ours
    assert {kind for kind in tree(AgentManagerError) if status_of(kind("x")) == 500} == ours
