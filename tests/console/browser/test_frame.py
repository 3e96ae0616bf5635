"""The frame around the views: first view, palette, keyboard, a manager that goes away."""

import re

from .conftest import EXAMPLES


def test_the_first_view_takes_five_requests(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    asked = []
    page.on("request", lambda request: asked.append(request.url.partition("?")[0].rpartition("/")[2]))
    page.goto(site.url)
    page.get_by_text("Nothing. Everything is fine.").wait_for()
    page.wait_for_timeout(0)
    # The doctor is asked once the first view is there. The icon is in the page itself.
    assert [name for name in asked if not name.startswith("doctor")][:6] == [
        "", "style.css", "preact.mjs", "console.js", "events",
    ]  # fmt: skip


def test_a_manager_that_goes_away_is_said_so_and_the_page_comes_back_by_itself(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/services")
    page.get_by_role("link", name="echo_agent").wait_for()
    site.stop()
    page.get_by_role("alert").get_by_text("The manager does not answer.").wait_for()
    site.run(EXAMPLES / "echo_agent.py")
    page.get_by_role("alert").wait_for(state="detached")
    page.get_by_role("row", name=re.compile("echo_agent.*running")).wait_for()
    page.errors.clear()  # Chromium says that requests failed; so they did


def test_the_palette_stops_a_service_and_shows_the_command_that_does_the_same(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/services")
    page.get_by_role("row", name=re.compile("echo_agent.*running")).wait_for()
    page.keyboard.press("Control+k")
    page.keyboard.type("stop echo")
    page.keyboard.press("Enter")
    page.get_by_text("agentmgr stop echo_agent").wait_for()
    page.get_by_role("row", name=re.compile("echo_agent.*stopped")).wait_for()


def test_back_and_reload_keep_the_view(site, page):
    site.run(EXAMPLES / "echo_agent.py", EXAMPLES / "notes_agent.py")
    page.goto(site.url)
    page.get_by_role("navigation").get_by_role("link", name="Services").click()
    page.get_by_role("searchbox").fill("notes")
    page.get_by_role("link", name="echo_agent").wait_for(state="detached")
    page.reload()
    assert page.get_by_role("searchbox").input_value() == "notes"
    page.get_by_role("link", name="notes_agent").wait_for()
    page.go_back()
    page.get_by_role("heading", name="Overview").wait_for()


def test_a_link_logs_in_once_and_a_revoked_login_asks_again(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    site.terminal.run("tokens", "create", "someone", "--scope", "admin")
    page.goto(site.url)
    page.get_by_text("agentmgr console").wait_for()  # what to type, in place of the console
    link = re.search(r"http://\S+#ticket=\S+", site.terminal.run("console", "--print").stdout)[0]
    page.goto("about:blank")
    page.goto(link)
    page.get_by_role("heading", name="Overview").wait_for()
    assert "ticket" not in page.url
    page.reload()  # by its cookie
    page.get_by_role("heading", name="Overview").wait_for()
    (login,) = [one for one in site.terminal.json("tokens", "list") if one["name"].startswith("console-")]
    site.terminal.run("tokens", "revoke", login["token_id"])
    page.get_by_text("agentmgr console").wait_for()
    page.errors.clear()  # Chromium says that requests were refused; so they were
