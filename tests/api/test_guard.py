"""Without tokens the API serves this machine's user, and no web page that a browser on it has open."""

from __future__ import annotations

import httpx2
import pytest

from agentmgr.api import serve_api
from agentmgr.core.hosts import is_loopback
from agentmgr.errors import InvalidRequest
from agentmgr.manager import AgentManager


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:{port}", "LOCALHOST:80"])
async def test_this_machine_may_be_named_in_its_usual_ways(
    http: httpx2.AsyncClient, url: str, host: str
) -> None:
    host = host.format(port=url.rpartition(":")[2])
    assert (await http.get("/info", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "evil@localhost", "", "[", "a:b"]
)
async def test_another_name_that_leads_here_is_refused(http: httpx2.AsyncClient, host: str) -> None:
    """DNS rebinding: the page's own domain resolves to this machine."""
    response = await http.get("/info", headers={"Host": host})
    assert (response.status_code, response.json()["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "https://localhost"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_page_of_another_origin_is_refused(
    http: httpx2.AsyncClient, url: str, method: str, origin: str
) -> None:
    response = await http.request(method, "/services", headers={"Origin": origin}, json={})
    assert (response.status_code, response.json()["code"]) == (403, "origin_not_allowed")
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_our_own_page_may_ask(http: httpx2.AsyncClient, url: str) -> None:
    response = await http.get("/info", headers={"Origin": url, "Sec-Fetch-Site": "same-origin"})
    assert response.status_code == 200


async def test_a_request_that_another_site_makes_a_browser_send_is_refused(http: httpx2.AsyncClient) -> None:
    response = await http.get("/info", headers={"Sec-Fetch-Site": "cross-site"})
    assert (response.status_code, response.json()["code"]) == (403, "origin_not_allowed")


async def test_a_link_from_elsewhere_may_lead_to_the_documentation(url: str) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        response = await http.get(f"{url}/docs", headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 200


async def test_a_preflight_is_granted_nothing(http: httpx2.AsyncClient) -> None:
    response = await http.options(
        "/services", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert response.status_code in (403, 405)
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


async def test_no_form_of_another_page_can_post(http: httpx2.AsyncClient) -> None:
    """A form needs no preflight, but cannot send JSON."""
    response = await http.post("/services", content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 415


async def test_others_cannot_be_served_without_tokens(manager: AgentManager) -> None:
    with pytest.raises(InvalidRequest, match="localhost"):
        await serve_api(manager, host="0.0.0.0", port=0)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("api.localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
        ("", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_what_is_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local
