"""Without tokens the API serves the user who runs the manager, and root; not every user of the machine."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

import httpx2
import pytest
import trio
import trustme

from agentmgr.api import connection, serve_api
from agentmgr.manager import AgentManager
from agentmgr.proxy.certificate import Certificate

STRANGER = 54321

#: Asks as that user; what it needs of Python is imported before it may not read it any more.
ASK = f"""
import encodings.idna, json, os, socket, ssl, sys
host, port, tls, method, path, key = sys.argv[1:]
context = ssl._create_unverified_context() if tls == "tls" else None
os.setgroups([])
os.setuid({STRANGER})
client = socket.create_connection((host, int(port)))
if context is not None:
    client = context.wrap_socket(client)
body = b'{{"name":"x","command":["/bin/true"]}}' if method == "POST" else b""
head = f"{{method}} {{path}} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n"
head += f"Content-Length: {{len(body)}}\\r\\nContent-Type: application/json\\r\\n"
head += f"Authorization: Bearer {{key}}\\r\\n" if key else ""
client.sendall(head.encode() + b"\\r\\n" + body)
answer = b""
while piece := client.recv(65536):
    answer += piece
head, _, body = answer.partition(b"\\r\\n\\r\\n")
print(int(head.split()[1]), body.decode())
"""

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


async def stranger(
    port: int, method: str, path: str, *, key: str = "", host: str = "127.0.0.1", tls: bool = False
) -> tuple[int, dict[str, Any]]:
    words = [host, str(port), "tls" if tls else "", method, path, key]
    done = await trio.run_process([sys.executable, "-c", ASK, *words], capture_stdout=True)
    status, _, body = done.stdout.decode().partition(" ")
    return int(status), json.loads(body) if body.startswith("{") else {}


@as_root
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_another_user_of_the_machine_needs_a_token(
    manager: AgentManager, nursery: trio.Nursery, host: str
) -> None:
    port = await nursery.start(partial(serve_api, manager, host=host, port=0))
    for method, path in (
        ("POST", "/api/v1/services"), ("GET", "/api/v1/services"), ("GET", "/metrics"), ("GET", "/nowhere"),
        ("POST", "/api/v1/tickets"), ("POST", "/api/v1/tokens"), ("PATCH", "/api/v1/token-policy"),
    ):  # fmt: skip
        status, problem = await stranger(port, method, path, host=host)
        assert (status, problem["code"]) == (401, "unauthorized"), path
        assert f"uid {STRANGER}" in problem["detail"]
        assert "tokens create" in problem["detail"]
    assert not manager.list_services()
    for path in ("/health", "/openapi.json"):
        assert (await stranger(port, "GET", path, host=host))[0] == 200, "it is public"
    _, key = await manager.create_token("reader", ["read"])
    assert (await stranger(port, "GET", "/api/v1/services", key=key, host=host))[0] == 200


@as_root
async def test_so_does_one_who_asks_over_tls(manager: AgentManager, nursery: trio.Nursery) -> None:
    issued = trustme.CA().issue_cert("localhost")
    with issued.private_key_and_cert_chain_pem.tempfile() as pem:
        port = await nursery.start(partial(serve_api, manager, port=0, certificate=Certificate(pem)))
        status, problem = await stranger(port, "POST", "/api/v1/services", tls=True)
    assert (status, problem["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("uid", "status"), [(0, 200), (os.geteuid(), 200), (os.geteuid() + 1, 401), (None, 401)]
)
async def test_who_is_at_the_other_end_decides(
    http: httpx2.AsyncClient, uid: int | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "peer_uid", lambda sock: uid)
    answer = await http.get("/services")
    assert answer.status_code == status
    if uid is None:
        assert "does not say which user" in answer.json()["detail"]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
async def test_what_a_proxy_forwards_is_not_the_users_own(
    http: httpx2.AsyncClient, manager: AgentManager, header: str
) -> None:
    answer = await http.get("/services", headers={header: "203.0.113.7"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert header in answer.json()["detail"]
    _, key = await manager.create_token("reader", ["read"])
    allowed = {header: "203.0.113.7", "Authorization": f"Bearer {key}"}
    assert (await http.get("/services", headers=allowed)).status_code == 200
