"""A service's page, and registering one."""

import re

from .conftest import EXAMPLES


def test_what_an_author_does_in_the_first_minute_needs_no_reading(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/services")
    page.get_by_role("link", name="echo_agent").click()
    page.get_by_text("It runs, and accepts connections.").wait_for()
    page.get_by_role("link", name="Talk to it").click()
    page.get_by_role("textbox").last.fill("hello")
    page.keyboard.press("Enter")
    page.get_by_text("You said: hello").first.wait_for()
    page.go_back()
    page.get_by_text("It runs, and accepts connections.").wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    dialog = page.get_by_role("dialog")
    stopped = page.get_by_text("It is stopped, and stays so until you start it.")
    dialog.or_(stopped).first.wait_for()
    if dialog.count():  # the playground's connection may still be open
        dialog.get_by_role("button", name="Stop").click()
    stopped.wait_for()
    page.get_by_role("heading", name="Last end").wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("It runs, and accepts connections.").wait_for()


def test_a_service_is_registered_from_its_file_and_a_refusal_stands_beside_its_field(site, page, tmp_path):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/register")
    page.get_by_label("Agent file", exact=True).fill("/nowhere/agent.py")
    page.get_by_label("Name", exact=True).fill("another")
    page.get_by_role("button", name="Register").click()
    page.locator("#agent_factory_path-problem").get_by_text("does not exist").wait_for()
    assert page.get_by_label("Name", exact=True).input_value() == "another"
    file = tmp_path / "broken.py"
    file.write_text('raise SystemExit("set the key first")\n')
    page.get_by_label("Agent file", exact=True).fill(str(file))
    page.get_by_text(f"agentmgr register another {file} --auto-start").wait_for()
    page.get_by_role("button", name="Register").click()
    page.get_by_role("heading", name=re.compile("another")).wait_for()
    page.get_by_text("set the key first").first.wait_for()
    page.errors.clear()  # Chromium says that a request was refused


def test_a_change_is_shown_before_it_is_made(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/services/echo_agent?tab=config")
    page.get_by_label("Description").fill("Says it back")
    page.get_by_role("button", name="Review the changes").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Says it back").first.wait_for()
    dialog.get_by_role("button", name="Apply", exact=True).click()
    page.get_by_text("Nothing changed.").wait_for()
    page.reload()
    page.get_by_text("Says it back").first.wait_for()
