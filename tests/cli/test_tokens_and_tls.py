"""`agentmgr tokens`, and listeners that speak TLS."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conditions import heard


def test_tokens_are_made_listed_and_revoked(here: Any) -> None:
    key = here.ok("tokens", "create", "dash", "--scope", "read", "--expires-days", "9").strip()
    assert key.startswith("agm_")
    assert key not in here.ok("tokens", "list")
    (token,) = json.loads(here.ok("tokens", "list", "--format", "json"))
    assert (token["name"], token["scopes"]) == ("dash", ["read"])
    assert "scopes" in here.fails("tokens", "create", "x", "--scope", "root")
    assert "dash" in here.fails("tokens", "create", "dash", "--scope", "read")
    assert "revoked" in here.ok("tokens", "revoke", "dash", "--leave-open")
    assert here.ok("tokens", "list") == ""
    assert "nobody" in here.fails("tokens", "revoke", "nobody")


def test_who_revokes_the_last_token_hears_what_stays_closed(here: Any) -> None:
    here.ok("tokens", "create", "app", "--scope", "connect")
    here.ok("tokens", "create", "admin", "--scope", "admin")
    assert "no token" not in here("tokens", "revoke", "app").stderr, "the administrator's opens both"
    said = here("tokens", "revoke", "admin").stderr
    assert "the gateway refuses every client: `agentmgr tokens create NAME --scope connect`" in said
    assert "refuses every request over TCP" in said
    (finding,) = (f for f in json.loads(here.ok("doctor", "--format", "json")) if f["what"] == "tokens")
    assert (finding["result"], "tokens require off" in finding["advice"]) == ("warning", True)
    assert here.ok("tokens", "require", "off", "--gateway") == "API asks for a token, gateway asks for none\n"
    assert here.ok("tokens", "require", "off") == "API asks for none, gateway asks for none\n"
    assert "API asks for none" in here("tokens", "list").stderr
    assert here.ok("tokens", "require", "on", "--api") == "API asks for a token, gateway asks for none\n"


def test_a_ticket_opens_the_gateway_once(shell: Any) -> None:
    assert "no manager is running" in shell.fails("tokens", "ticket")
    with shell.background("run", "my_agent.py", "--proxy-port", "0", "--api-port", "0") as run:
        url = run.until("clients connect to").split()[-1]
        run.until("my_agent is running")
        shell.ok("tokens", "create", "page", "--scope", "connect")
        ticket = shell.ok("tokens", "ticket", "--service", "my_agent").strip()
        assert ticket.startswith("agt_")
        with connect(f"{url}?ticket={ticket}") as client:
            client.send("hello")
            assert heard(client) == "echo: hello"
        for again in (f"{url}?ticket={ticket}", url):
            with pytest.raises(InvalidStatus, match="401"):
                connect(again)
        assert "nobody" in shell.fails("tokens", "ticket", "--service", "nobody")
        refused = shell.fails("chat", "--once", "hi")
        assert "--token or AGENTMGR_TOKEN" in refused
        assert "not valid" in shell.fails("chat", "--once", "hi", "--token", "wrong")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, ssl.SSLContext]:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return "server.pem", context


def test_the_api_is_open_to_others_with_a_token_and_over_tls(
    shell: Any, certificate: tuple[str, ssl.SSLContext]
) -> None:
    pem, context = certificate
    assert "tokens create" in shell.fails("api", "--host", "0.0.0.0", "--port", "0")
    key = shell.ok("tokens", "create", "dash", "--scope", "read").strip()
    with shell.background("daemon", "--api-port", "0", "--certfile", pem) as daemon:
        first = daemon.until("API at https://").split()[-1].removesuffix("/docs")
        assert json.loads(shell.ok("tokens", "list", "--format", "json"))[0]["name"] == "dash"
        with shell.background("api", "--port", "0", "--proxy-port", "0", "--certfile", pem) as api:
            console, documentation, gateway = sorted(api.until(" at ").split()[-1] for _ in range(3))
            assert gateway.startswith("wss://")
            second = documentation.removesuffix("/docs")
            assert console == f"{second}/console/"
            for url in (first, second):
                with httpx2.Client(verify=context, base_url=url, timeout=60) as http:
                    assert http.get("/api/v1/info").status_code == 401
                    headers = {"Authorization": f"Bearer {key}"}
                    assert http.get("/api/v1/info", headers=headers).status_code == 200


def test_chat_finds_out_that_the_gateway_speaks_tls(
    shell: Any, certificate: tuple[str, ssl.SSLContext]
) -> None:
    pem, _ = certificate
    shell.ok("register", "echo", "my_agent.py", "--auto-start")
    with shell.background("proxy", "--port", "0", "--certfile", pem) as proxy:
        url = proxy.until("gateway at").split()[-1]
        assert url in shell.ok("info")
        assert shell.ok("chat", "echo", "--once", "hi", "--cafile", "authority.pem") == "echo: hi\n"
        assert shell.ok("chat", url, "--once", "hi", "--insecure") == "echo: hi\n"
        assert "not trusted" in shell.fails("chat", "--once", "hi")
        assert "my_agent.py" in shell.fails("chat", "--once", "hi", "--cafile", "my_agent.py")


def test_a_certificate_that_is_unfit_is_named(here: Any, write: Any) -> None:
    write("bad.pem", "nonsense")
    for file in ("bad.pem", "none.pem"):
        assert file in here.fails("daemon", "--certfile", file)
    here.fails("api", "--keyfile", "bad.pem", code=2)
