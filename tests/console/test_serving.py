"""The page and its files: what a browser gets, what it may keep, and what the page may reach."""

from __future__ import annotations

import gzip
import html
import json
import re
import subprocess
import sys
from functools import partial

import httpx2
import pytest
import trio

from agentmgr.api import serve_api
from agentmgr.console.files import load
from agentmgr.manager import AgentManager

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'{}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


async def links(http: httpx2.AsyncClient) -> list[str]:
    page = await http.get("/console/")
    return re.findall(r'(?:src|href)="(/[^"]+)"', page.text)


async def test_the_page_comes_with_all_that_guards_it(http: httpx2.AsyncClient) -> None:
    page = await http.get("/console/")
    assert page.status_code == 200
    headers = {
        name: page.headers[name] for name in page.headers if name not in ("date", "x-request-id", "etag")
    }
    assert headers == {
        "content-type": "text/html; charset=utf-8",
        "content-length": page.headers["content-length"],
        "content-encoding": "gzip",
        "vary": "Accept-Encoding, Cookie, Host",
        "cache-control": "no-cache",
        "content-security-policy": POLICY.format(""),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }


async def test_the_files_of_the_page_are_there_and_never_change(http: httpx2.AsyncClient) -> None:
    found = await links(http)
    assert {link.rpartition("/")[2] for link in found} >= {"style.css", "console.js"}
    for link in found:
        response = await http.get(link)
        assert (response.status_code, response.headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        kind = "text/css" if link.endswith(".css") else "text/javascript"
        assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert (await http.get(found[0])).content == load().files[found[0].partition(load().prefix + "/")[2]].raw


async def test_each_file_of_the_console_has_an_address(http: httpx2.AsyncClient) -> None:
    for name, asset in load().files.items():
        assert (await http.get(f"{load().prefix}/{name}")).content == asset.raw


async def test_a_page_that_is_as_it_was_is_not_sent_again(
    http: httpx2.AsyncClient, manager: AgentManager, nursery: trio.Nursery
) -> None:
    for path in ("/console/", (await links(http))[0]):
        etag = (await http.get(path)).headers["ETag"]
        for known in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
            again = await http.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
            assert "Content-Type" not in again.headers
        assert (await http.get(path, headers={"If-None-Match": '"other"'})).status_code == 200
    # It is kept with its policy: a gateway that was opened since would be out of reach.
    etag = (await http.get("/console/")).headers["ETag"]
    await nursery.start(manager.serve_proxy, "localhost", 0)
    assert (await http.get("/console/", headers={"If-None-Match": etag})).status_code == 200


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, br", "gzip"), ("*", "gzip"), ("identity", None), ("gzip;q=0", None), ("br", None), ("", None)],
)
async def test_files_are_compressed_for_those_who_take_that(
    http: httpx2.AsyncClient, accepted: str, encoding: str | None
) -> None:
    page = await http.get("/console/", headers={"Accept-Encoding": accepted})
    assert page.headers.get("Content-Encoding") == encoding
    assert page.headers["Vary"] == "Accept-Encoding, Cookie, Host"
    assert page.content.endswith(load().page.raw[-200:])  # the client has unpacked it


async def test_the_page_brings_what_its_first_request_would_ask_for(http: httpx2.AsyncClient) -> None:
    page = (await http.get("/console/")).text
    (state,) = re.findall(r'<meta name="agentmgr-console" content="([^"]*)">', page)
    assert json.loads(html.unescape(state)) == (await http.get("/api/v1/console")).json()
    assert "{{" not in page


async def test_there_is_one_stylesheet(http: httpx2.AsyncClient) -> None:
    files = load().files
    assert [name for name in files if name.endswith(".css")] == ["style.css"]
    assert b".sidebar" in files["style.css"].raw


def test_compressed_files_are_shorter_and_the_same_each_time() -> None:
    for asset in load().files.values():
        assert asset.compressed is None or gzip.decompress(asset.compressed) == asset.raw
        assert asset.compressed is None or len(asset.compressed) < len(asset.raw)


def test_all_files_together_are_small() -> None:
    files = [load().page, *load().files.values()]
    assert sum(len(asset.raw) for asset in files) <= 320 * 1024
    assert sum(len(asset.compressed or asset.raw) for asset in files) <= 100 * 1024


async def test_head_says_what_get_would(http: httpx2.AsyncClient) -> None:
    for path in ("/console/", (await links(http))[0]):
        got, head = await http.get(path), await http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("Content-Length", "Content-Type", "ETag", "Cache-Control"):
            assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    "path",
    ["main.js", "index.html", "vendor", "../bundle.py", "..%2f..%2fbundle.py", "console.js/", "", "no/such"],
)
async def test_what_is_no_file_of_the_page_is_not_found(http: httpx2.AsyncClient, path: str) -> None:
    response = await http.get(f"{load().prefix}/{path}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_a_file_of_another_release_is_not_found(http: httpx2.AsyncClient) -> None:
    for link in ("/console/assets/0123/console.js", "/console/assets/console.js"):
        response = await http.get(link)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_a_browser_is_led_to_the_console_and_a_program_to_the_documentation(
    http: httpx2.AsyncClient,
) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    assert (await http.get("/", headers=browser)).headers["Location"] == "/console/"
    assert (await http.get("/", headers={"Accept": "text/html"})).headers["Location"] == "/console/"
    assert (await http.get("/")).headers["Location"] == "/docs"
    assert (await http.get("/console", headers=browser)).headers["Location"] == "/console/"
    for path in ("/", "/console"):
        response = await http.get(path, headers=browser, follow_redirects=True)
        assert (response.status_code, response.url.path) == (200, "/console/")
    assert (await http.get("/docs")).status_code == 200


async def test_a_link_from_elsewhere_leads_to_the_page_and_to_nothing_behind_it(
    http: httpx2.AsyncClient,
) -> None:
    assert (await http.get("/console/", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 200
    assert (await http.get("/console/", headers={"Host": "evil.example"})).status_code == 403


@pytest.mark.parametrize(
    ("listens", "asked", "reaches"),
    [
        ("localhost", "localhost", ["localhost"]),
        ("localhost", "127.0.0.1", ["127.0.0.1"]),
        ("127.0.0.1", "localhost", ["127.0.0.1"]),
        ("localhost", "[::1]", ["localhost"]),
        ("::1", "localhost", ["localhost"]),
        ("0.0.0.0", "127.0.0.1", ["127.0.0.1"]),
    ],
)
async def test_the_page_may_reach_the_gateway_by_the_name_that_the_browser_used(
    http: httpx2.AsyncClient,
    manager: AgentManager,
    nursery: trio.Nursery,
    listens: str,
    asked: str,
    reaches: list[str],
) -> None:
    gateway = await nursery.start(manager.serve_proxy, listens, 0)
    port = http.base_url.port
    page = await http.get("/console/", headers={"Host": f"{asked}:{port}"})
    origins = "".join(f" ws://{host}:{gateway} http://{host}:{gateway}" for host in reaches)
    assert page.headers["Content-Security-Policy"] == POLICY.format(origins)


async def test_with_tokens_any_name_may_lead_here_and_none_gets_into_the_policy_that_is_none(
    manager: AgentManager, nursery: trio.Nursery
) -> None:
    await manager.create_token("admin", ["admin"])
    api = await nursery.start(partial(serve_api, manager, host="0.0.0.0", port=0))
    gateway = await nursery.start(manager.serve_proxy, "0.0.0.0", 0)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{api}") as http:
        for host, name in (("agents.example", "agents.example"), ("x;script-src", "localhost")):
            page = await http.get("/console/", headers={"Host": host})
            if page.status_code == 200:
                origins = f" ws://{name}:{gateway} http://{name}:{gateway}"
                assert page.headers["Content-Security-Policy"] == POLICY.format(origins)
            else:
                assert (host, page.status_code) == ("x;script-src", 400)


def test_what_serves_no_page_does_not_read_it() -> None:
    modules = "import agentmgr.api, agentmgr.manager, agentmgr.cli.commands.console, sys"
    done = subprocess.run([sys.executable, "-c", f"{modules}; assert 'agentmgr.console' not in sys.modules"])
    assert done.returncode == 0
