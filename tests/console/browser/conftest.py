"""The console in a real browser, before a manager and services that are real too.

These tests run with AGENTMGR_TEST_CONSOLE=1 alone: `.ci/console` does, in a stage of its own. They need
Chromium, and playwright, which is not made to download one.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import end_all_in
from tests.terminal import Foreground, Terminal

EXAMPLES = Path(__file__).parents[3] / "examples"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    asked = os.environ.get("AGENTMGR_TEST_CONSOLE") == "1"
    skip = pytest.mark.skip(
        reason="the browser's tests run with AGENTMGR_TEST_CONSOLE=1 alone, see .ci/console"
    )
    for item in items:
        if not asked and here in item.path.parents:
            item.add_marker(skip)


class Site:
    """A manager in a terminal, and the address of its console."""

    def __init__(self, directory: Path) -> None:
        self.terminal = Terminal(directory)
        self._running: Foreground | None = None
        self._ports = ("0", "0")

    def run(self, *files: Path | str) -> None:
        """`agentmgr run FILE…`; when it was stopped, at the ports that it had."""
        self._begin("run", *map(str, files))

    def manage(self) -> None:
        """`agentmgr daemon`, with what is registered."""
        self._begin("daemon")

    def _begin(self, *words: str) -> None:
        proxy_port, api_port = self._ports
        self._running = self.terminal.start(*words, "--proxy-port", proxy_port, "--api-port", api_port)
        self._running.wait_for(r"http://localhost:\d+/console/")
        proxy = re.search(r"ws://localhost:(\d+)", self._running.seen)
        api = re.search(r"http://localhost:(\d+)/console/", self._running.seen)
        assert proxy, self._running.seen
        assert api, self._running.seen
        self._ports = (proxy[1], api[1])

    def talk(self, service: str, text: str) -> str:
        """Says something to a service; the id of the session that this made."""
        self.terminal.run("chat", f"{self.gateway}/services/{service}", "--once", text)
        return str(self.terminal.json("sessions", service)[0]["session_id"])

    def stop(self) -> None:
        assert self._running is not None
        self._running.interrupt()

    @property
    def url(self) -> str:
        return f"http://localhost:{self._ports[1]}/console/"

    @property
    def gateway(self) -> str:
        return f"ws://localhost:{self._ports[0]}"

    def close(self) -> None:
        self.terminal.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    try:
        site.close()
    finally:
        end_all_in(tmp_path)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, each as another person's. In the end none has said an error or asked another origin."""
    contexts: list[Any] = []
    errors: list[str] = []
    strange: list[str] = []

    def open_page(
        *, width: int = 1280, height: int = 800, dark: bool = False, language: str = "en", **kw: Any
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            locale={"en": "en-GB", "zh": "zh-CN"}[language],
            **kw,
        )
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda line: errors.append(line.text) if line.type in ("error", "warning") else None
        )
        page.on("request", lambda request: strange.append(request.url) if not _local(request.url) else None)
        page.errors = errors  # a test in which the manager dies clears what the browser says of that
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert strange == []


def _local(url: str) -> bool:
    return re.match(r"(https?|wss?)://(localhost|127\.0\.0\.1)[:/]|data:|blob:|about:", url) is not None


@pytest.fixture
def page(new_page: Callable[..., Any]) -> Any:
    return new_page()
