"""An agent's own port, as its user, a web page and the gateway find it: with a manager, and with `serve`."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

WHO = """
def create_agent():
    async def answer(message, session):
        return f"identity={session.client.identity}"
    return answer
"""
FORGED = {"X-Agentmgr-Identity": "alice", "X-Agentmgr-Proof": ""}


def says(url: str, **headers: str) -> str:
    with connect(url, additional_headers=headers, open_timeout=30) as client:
        client.send("who am I?")
        return str(client.recv(timeout=30))


def status(url: str, origin: str) -> int:
    try:
        with connect(url, additional_headers={"Origin": origin}, open_timeout=30):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@pytest.fixture
def agent(shell: Any) -> str:
    (shell.directory / "who.py").write_text(WHO)
    return "who.py"


def test_only_the_gateway_says_who_a_client_is(shell: Any, agent: str) -> None:
    with shell.background("daemon", "--proxy-port", "0") as daemon:
        gateway = daemon.until("gateway at ws").split()[-1]
        shell.ok("register", "who", agent, "--auto-start")
        key = shell.ok("tokens", "create", "alice", "--scope", "connect").split()[-1]
        [instance] = [
            word.rstrip(",\"'") for word in shell.ok("status", "who").split() if word.startswith("ws://")
        ]
        assert says(f"{gateway}/services/who", Authorization=f"Bearer {key}") == "identity=alice"
        assert says(instance, **FORGED) == "identity=None"
        assert status(instance, "http://evil.example") == 403
        shell.ok("shutdown")


def test_serve_judges_pages_as_the_gateway_does(shell: Any, agent: str) -> None:
    with shell.background("serve", agent, "--port", "0", "--allow-origin", "https://app.example") as serve:
        url = serve.until("answers at").split("answers at ")[1].split(";")[0]
        assert says(url, **FORGED) == "identity=None"
        assert status(url, "https://app.example") == 101
        assert status(url, "https://evil.example") == 403
    assert "must be an origin" in shell.fails("serve", agent, "--allow-origin", "app.example")


def test_serve_on_more_than_loopback_says_who_may_connect(shell: Any, agent: str) -> None:
    with shell.background("serve", agent, "--port", "0", "--host", "0.0.0.0") as serve:
        assert "0.0.0.0" in serve.until("any machine and user that reaches it may use this agent")
