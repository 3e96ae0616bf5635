"""`agentmgr console`: a link that opens the page, and the addresses that other commands say."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_on_a_terminal import on_terminal


def log_in(link: str) -> tuple[int, str]:
    """What the page does with its link: the status, and the cookie."""
    page, _, ticket = link.partition("#ticket=")
    origin = page.removesuffix("/console/")
    request = urllib.request.Request(
        f"{origin}/api/v1/console/login",
        json.dumps({"ticket": ticket}).encode(),
        {"Content-Type": "application/json", "Origin": origin, "X-Agentmgr-Console": "1"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Set-Cookie"].partition(";")[0]
    except urllib.error.HTTPError as refused:
        return refused.code, ""


def get(url: str, cookie: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Cookie": cookie})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, ""


def test_without_tokens_it_is_the_address_of_the_page(shell: Any) -> None:
    with shell.background("daemon", "--api-port", "0") as daemon:
        address = daemon.until("console at").split()[-1]
        done = shell("console")
        assert (done.stdout, done.stderr, done.returncode) == (f"{address}\n", "", 0)
        status, page = get(address)
        assert (status, "console.js" in page) == (200, True)
        assert "no tokens are needed" in shell("console", "--scope", "read").stderr


def test_with_tokens_the_link_logs_one_browser_in_with_its_scopes(shell: Any) -> None:
    shell.ok("tokens", "create", "admin", "--scope", "admin")
    with shell.background("daemon", "--api-port", "0") as daemon:
        address = daemon.until("console at").split()[-1]
        done = shell("console", "--scope", "read", "--scope", "connect")
        assert "good for one browser, until" in done.stderr
        link = done.stdout.strip()
        assert link.startswith(f"{address}#ticket=")
        status, cookie = log_in(link)
        assert status == 204
        api = address.removesuffix("/console/") + "/api/v1"
        assert json.loads(get(f"{api}/console", cookie)[1])["scopes"] == ["connect", "read"]
        assert get(f"{api}/tokens", cookie)[0] == 403
        assert log_in(link)[0] == 401, "once"
        _, cookie = log_in(shell.ok("console", "--print").strip())
        assert get(f"{api}/tokens", cookie)[0] == 200, "admin, unless it says otherwise"
        assert [row["name"][:8] for row in json.loads(shell.ok("tokens", "list", "--format", "json"))] == [
            "admin", "console-", "console-",
        ]  # fmt: skip
        assert "scopes must be of" in shell.fails("console", "--scope", "root")


def test_where_no_api_is_open_it_opens_one(shell: Any) -> None:
    with shell.background("console", "--port", "0") as alone:
        address = alone.until("http://localhost:", "/console/").split()[-1]
        assert get(address)[0] == 200
        assert alone.interrupt()[0] == 0
    assert get_fails(address)
    with shell.background("daemon") as daemon:
        daemon.until("managing")
        shell.ok("tokens", "create", "admin", "--scope", "admin")
        with shell.background("console", "--port", "0") as beside:
            link = beside.until("#ticket=").strip()
            assert log_in(link)[0] == 204
            assert beside.interrupt()[0] == 0
        assert get_fails(link)
        assert "managing" not in shell.ok("info"), "the manager goes on"


def get_fails(url: str) -> bool:
    try:
        get(url)
    except urllib.error.URLError:
        return True
    return False


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A browser that notes what it is asked to open."""
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    script.chmod(0o755)
    return script


def test_on_a_terminal_with_a_display_it_opens_a_browser(shell: Any, browser: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    with shell.background("daemon", "--api-port", "0") as daemon:
        address = daemon.until("console at").split()[-1]
        assert address in on_terminal(shell, "console", BROWSER=str(browser))
        assert opened.read_text() == address
        opened.unlink()
        for words in (["--no-browser"], ["--print"]):
            on_terminal(shell, "console", *words, BROWSER=str(browser))
        on_terminal(shell, "console", BROWSER="", DISPLAY="", WAYLAND_DISPLAY="")
        shell.ok("console", BROWSER=str(browser))  # it is a pipe that reads this
        assert not opened.exists()
        # Any user of the machine can read the browser's command line: that ticket is good for this one only.
        shell.ok("tokens", "create", "admin", "--scope", "admin")
        shown = on_terminal(shell, "console", BROWSER=str(browser))
        links = [opened.read_text(), next(word for word in shown.split() if "#ticket=" in word)]
        assert links[0] != links[1]
        assert [log_in(link)[0] for link in links] == [204, 204]


def test_a_browser_that_cannot_be_opened_is_said(shell: Any, tmp_path: Path) -> None:
    with shell.background("daemon", "--api-port", "0") as daemon:
        daemon.until("console at")
        assert "open the link by hand" in on_terminal(shell, "console", BROWSER=str(tmp_path / "none"))


def test_run_and_info_say_where_it_is(shell: Any) -> None:
    with shell.background("run", "my_agent.py", "--proxy-port", "0", "--api-port", "0") as running:
        address = running.until("  console  ").split()[-1]
        assert get(address)[0] == 200
        assert f"console         {address}" in shell.ok("info")
    with shell.background("api", "--port", "0") as api:
        assert get(api.until("console at").split()[-1])[0] == 200
