"""Routing: a rule is made in the form, tried on the bench, moved, switched off and deleted."""

import re

from .conftest import EXAMPLES


def add_rule(page, site, name, *, field, value, service):
    page.goto(site.url + "#/routing/new")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Add a condition").click()
    page.get_by_label("Of the request").fill(field)
    page.get_by_label("Value").fill(value)
    page.get_by_label("Services", exact=True).fill(service)
    page.get_by_role("button", name="Add the rule").click()
    page.get_by_role("heading", name="Rules, in order").wait_for()


def test_a_refused_rule_keeps_what_was_typed_with_the_apis_words_beside_the_field(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/routing/new")
    page.get_by_label("Name", exact=True).fill("chinese")
    page.get_by_label("Priority").fill("first")
    page.get_by_role("button", name="Add a condition").click()
    page.get_by_label("Of the request").fill("query.lang")
    page.get_by_label("how").select_option("regex_match")
    page.get_by_label("Value").fill("(")
    page.get_by_role("button", name="Add the rule").click()
    page.locator("#rule-priority-problem").wait_for()
    assert page.get_by_label("Value").input_value() == "("
    page.get_by_label("Priority").fill("5")
    page.get_by_role("button", name="Add the rule").click()
    page.locator("#condition-0-value-problem").get_by_text("is not a usable pattern").wait_for()
    page.errors.clear()  # Chromium says of each refusal that it came


def test_a_rule_is_made_tried_and_moved(site, page):
    site.run(EXAMPLES / "echo_agent.py", EXAMPLES / "notes_agent.py")
    add_rule(page, site, "chinese", field="query.lang", value="zh", service="notes_agent")
    add_rule(page, site, "first", field="query.x", value="1", service="echo_agent")

    page.get_by_label("Path, with its query").fill("/?lang=zh&x=1")
    outcome = page.locator(".outcome")
    outcome.get_by_role("link", name="notes_agent").wait_for()
    verdicts = page.locator(".verdicts > li")
    assert "decides" in verdicts.nth(0).inner_text()
    assert "an earlier one decides" in verdicts.nth(1).inner_text()
    assert "path=" in page.url

    page.get_by_role("button", name="Try first earlier").click()
    outcome.get_by_role("link", name="echo_agent").wait_for()
    assert [rule["name"] for rule in site.terminal.json("routes", "list")] == ["first", "chinese"]

    page.locator(".rule", has_text="first").get_by_role("button", name="Disable").click()
    outcome.get_by_role("link", name="notes_agent").wait_for()
    page.get_by_label("Path, with its query").fill("/")
    page.locator(".verdicts").get_by_text("the request has none").first.wait_for()

    page.locator(".rule", has_text="first").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_text("agentmgr routes remove first").wait_for()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("link", name="first", exact=True).wait_for(state="detached")


def test_a_client_that_nobody_can_take_is_refused_with_its_code_and_what_helps(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/routing?path=/services/nonesuch")
    alert = page.get_by_role("alert")
    alert.get_by_text("service_not_found").wait_for()
    alert.get_by_text("agentmgr list", exact=True).wait_for()


def test_header_lines_and_an_address_reach_the_rules(site, page):
    site.run(EXAMPLES / "echo_agent.py", EXAMPLES / "notes_agent.py")
    add_rule(page, site, "vip", field="header.x-plan", value="gold", service="notes_agent")
    page.get_by_label("Headers, one on each line").fill("x-plan")
    page.get_by_text("“x-plan” is not Name: value").wait_for()
    page.get_by_label("Headers, one on each line").fill("x-plan: gold\nUser-Agent: curl")
    page.locator(".outcome").get_by_role("link", name="notes_agent").wait_for()
    page.get_by_text(re.compile("--header 'x-plan: gold'")).wait_for()
