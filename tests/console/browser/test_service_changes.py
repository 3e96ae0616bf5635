"""What changes a service, and what is asked before: scale, configuration, unregister; how it has ended."""

import os
import re
import signal

from websockets.sync.client import connect

from .conftest import EXAMPLES

READY = "It runs, and accepts connections."


def test_a_service_is_scaled_and_a_number_that_is_none_is_refused_beside_its_field(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/services/echo_agent")
    page.get_by_text(READY).wait_for()
    page.get_by_role("button", name="Scale", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Instances").fill("many")
    dialog.get_by_role("button", name="Scale", exact=True).click()
    dialog.locator("#instances-problem").wait_for()
    assert dialog.get_by_label("Instances").input_value() == "many"
    dialog.get_by_label("Instances").fill("2")
    dialog.get_by_text("agentmgr scale echo_agent 2").wait_for()
    dialog.get_by_role("button", name="Scale", exact=True).click()
    page.get_by_text("It runs: all 2 instances are ready.").wait_for()
    page.get_by_role("button", name="Scale", exact=True).click()
    dialog.get_by_label("Instances").fill("1..4")
    dialog.get_by_role("button", name="Scale", exact=True).click()
    page.get_by_text("1..4, as many as the load needs; now 2").wait_for()
    page.errors.clear()  # Chromium says that a request was refused


def test_kept_sessions_are_erased_only_when_that_was_asked_too(site, page):
    file = str(EXAMPLES / "echo_agent.py")
    site.terminal.run("register", "keeper", file, "--sessions", "durable", "--auto-start")
    site.manage()
    page.goto(site.url + "#/services/keeper")
    page.get_by_text(READY).wait_for()
    site.talk("keeper", "remember this")
    dialog = page.get_by_role("dialog")
    for answer in ("Cancel", "Erase and unregister"):
        page.get_by_role("button", name="Unregister", exact=True).click()
        dialog.get_by_role("button", name="Unregister", exact=True).click()
        page.get_by_role("heading", name="Erase its sessions too?").wait_for()
        dialog.get_by_text("agentmgr unregister keeper --force").wait_for()
        dialog.get_by_role("button", name=answer).click()
        dialog.wait_for(state="detached")
        if answer != "Cancel":
            page.wait_for_url("**#/services")  # once it is gone
        assert len(site.terminal.json("list")) == (answer == "Cancel")
    page.errors.clear()  # Chromium says that requests were refused


def test_a_change_that_another_person_was_quicker_with_is_kept_and_looked_at_again(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/services/echo_agent?tab=config")
    page.get_by_label("Description").fill("mine")
    page.get_by_role("button", name="Review the changes").click()
    changes = []

    def meanwhile(route):
        if route.request.method == "PATCH" and not changes:
            changes.append(site.terminal.run("change", "echo_agent", "--description", "theirs"))
        route.continue_()

    page.route("**/api/v1/services/*", meanwhile)
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Apply", exact=True).click()
    page.get_by_text("What you typed is kept.").wait_for()
    assert page.get_by_label("Description").input_value() == "mine"
    page.get_by_role("button", name="Load the current one").click()
    page.get_by_role("button", name="Review the changes").click()
    dialog.get_by_text("theirs").wait_for()
    dialog.get_by_role("button", name="Apply", exact=True).click()
    page.get_by_text("Nothing changed.").wait_for()
    (service,) = site.terminal.json("list")
    assert service["description"] == "mine"
    page.errors.clear()  # Chromium says that a request was refused


def test_the_history_has_each_end_with_its_reason_the_newest_first(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/services/echo_agent?tab=history")
    page.get_by_text("No instance has ended yet.").wait_for()
    page.get_by_role("heading", name=re.compile("running")).wait_for()
    (service,) = site.terminal.json("list")
    os.kill(service["instances"][0]["pid"], signal.SIGKILL)
    ends = page.locator(".ends li")
    ends.get_by_text(re.compile("SIGKILL")).first.wait_for()
    page.get_by_role("heading", name=re.compile("running")).wait_for()
    page.get_by_role("button", name="Stop", exact=True).click()
    ends.nth(1).get_by_text(re.compile("SIGKILL")).first.wait_for()
    assert ends.count() == 2


def test_several_are_stopped_after_a_question_that_says_how_many_are_connected(site, page):
    site.run(EXAMPLES / "echo_agent.py", EXAMPLES / "notes_agent.py")
    page.goto(site.url + "#/services")
    for name in ("echo_agent", "notes_agent"):
        page.get_by_role("row", name=re.compile(f"{name}.*running")).get_by_role("checkbox").check()
    with connect(site.gateway + "/services/echo_agent") as socket:
        socket.send("hello")
        socket.recv(timeout=30)
        page.get_by_role("row", name=re.compile(r"echo_agent .*running 1 . 1 1 ")).wait_for()
        page.get_by_role("group", name="The chosen ones").get_by_role("button", name="Stop").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_text("1 connections are open; they are closed.").wait_for()
        dialog.get_by_role("button", name="Stop").click()
        for name in ("echo_agent", "notes_agent"):
            page.get_by_role("row", name=re.compile(f"{name}.*stopped")).wait_for()
