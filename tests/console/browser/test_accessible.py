"""What axe-core finds, and what the keyboard alone can do."""

import os
import re
from pathlib import Path

import pytest

from .conftest import EXAMPLES

AXE = os.environ.get("AGENTMGR_TEST_AXE")

# Each view; `NAME` stands for a service, `SESSION` for a session of it.
VIEWS = [
    "", "services", "services/NAME", "services/NAME?tab=logs", "services/NAME?tab=configuration",
    "services/NAME?tab=history", "register", "sessions", "sessions/SESSION", "questions", "routing",
    "playground?service=NAME", "events", "access",
]  # fmt: skip


@pytest.mark.skipif(AXE is None, reason="axe-core comes from npm: .ci/console brings it")
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_nothing_in_any_view_light_or_dark(site, new_page, width):
    site.run(EXAMPLES / "echo_agent.py")
    session, wrong = site.talk("echo_agent", "hello"), []
    for dark in (False, True):
        page = new_page(width=width, dark=dark)
        for view in VIEWS:
            page.goto(f"{site.url}#/{view.replace('NAME', 'echo_agent').replace('SESSION', session)}")
            page.reload()
            page.locator("main h1").wait_for()
            page.get_by_text("Loading …").wait_for(state="detached")
            page.evaluate(Path(AXE).read_text())
            for found in page.evaluate("axe.run().then((result) => result.violations)"):
                wrong.append((view, dark, found["id"], [node["html"] for node in found["nodes"]]))
    assert wrong == []


def test_a_service_is_found_and_stopped_by_keys_alone(site, page):
    site.run(EXAMPLES / "echo_agent.py", EXAMPLES / "notes_agent.py")
    page.goto(site.url + "#/services")
    page.get_by_role("link", name="notes_agent").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("notes")
    page.get_by_role("link", name="echo_agent").wait_for(state="detached")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Choose notes_agent":
            break
    page.keyboard.press("Space")
    stop = page.get_by_role("group", name="The chosen ones").get_by_role("button", name="Stop")
    stop.focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("row", name=re.compile("notes_agent.*stopped")).wait_for()
