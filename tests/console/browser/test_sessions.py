"""Sessions, questions, access: a conversation looked at while it goes on, and steered; who may do what."""

import json
import re
import time

import pytest
import trio

from agentmgr.client import open_session

from .conftest import EXAMPLES

AGENT = """
from agentmgr.agent import Event, thinking, tool_call, tool_result
import trio

async def agent(message, session):
    if message == "fail":
        raise RuntimeError("no")
    if message == "long":
        yield "begun"
        await trio.sleep_forever()
    if message == "many":
        for number in range(5000):
            yield tool_call("count", {"number": number}, step_id=str(number))
            yield tool_result("count", number, step_id=str(number))
        return
    yield thinking("<script>alert(1)</script>")
    yield tool_call("<b>look</b>", {"html": "<img src=x onerror=alert(1)>", "bidi": "a\\u202eb"}, step_id="1")
    yield tool_result("<b>look</b>", {"found": 3}, step_id="1")
    yield Event("agent.usage", {"input_tokens": 812, "output_tokens": 143, "model": "m"})
    yield "It is "
    yield "there: <img src=x onerror=alert(1)>"
"""


@pytest.fixture
def talker(site):
    path = site.terminal.directory / "talker.py"
    path.write_text(AGENT)
    site.run(path, EXAMPLES / "streaming_agent.py")
    site.terminal.run("start", "talker", "streaming_agent")  # returns when they are ready
    return site


def said(site, service, *texts):
    """Says them in a new session, waits for the answers, and returns its id."""

    async def talk():
        async with open_session(f"{site.gateway}/services/{service}") as session:
            for text in texts:
                await session.ask(text)
            return session.session_id

    return trio.run(talk)


def asked(site):
    """A question that waits for a person; the manager is the client, and stays."""
    session_id = said(site, "streaming_agent", "hello")
    site.terminal.run("sessions", "say", session_id, "delete notes.txt")


def test_a_session_is_found_and_shown_with_all_that_happened(talker, page):
    session_id = said(talker, "talker", "where is it?", "again")
    page.goto(talker.url + "#/sessions?service=talker")
    page.get_by_role("link", name=session_id[:12]).click()
    page.get_by_text("where is it?").wait_for()
    assert page.get_by_text("It is there: <img src=x onerror=alert(1)>").count() == 2  # joined, and text
    page.get_by_text("1,624 + 286").wait_for()
    tool = page.locator("details.tool").first
    tool.locator("summary").click()
    tool.get_by_text('"found": 3').wait_for()
    assert "\\u202e" in tool.inner_text()
    assert page.locator("main img, main script, main b").count() == 0
    page.go_back()
    page.get_by_role("searchbox").fill("nothing")
    page.get_by_text("No session matches.").wait_for()
    assert "service=talker" in page.url
    assert "q=nothing" in page.url


def test_one_speaks_in_a_session_stops_its_turn_and_sees_an_error(talker, page):
    session_id = said(talker, "talker", "hello")
    page.goto(f"{talker.url}#/sessions/{session_id}")
    field = page.get_by_label("Say something in it, in its owner's name")
    field.fill("long")
    field.press("Enter")
    page.get_by_text("begun", exact=True).wait_for()
    assert field.input_value() == ""
    page.get_by_role("button", name="Stop the turn").click()
    page.get_by_text("The turn was interrupted").wait_for()
    talker.terminal.run("sessions", "say", session_id, "fail")  # somebody else speaks: it is seen
    page.get_by_text("The turn failed").wait_for()
    assert "tab=logs" in page.get_by_role("link", name="Open the log").get_attribute("href")


def test_a_session_is_exported_and_erased(talker, page):
    session_id = said(talker, "talker", "hello")
    page.goto(f"{talker.url}#/sessions/{session_id}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").click()
    lines = download.value.path().read_text().splitlines()
    assert {json.loads(line)["kind"] for line in lines} == {"session", "turn", "event"}
    page.get_by_role("button", name="End and erase").click()
    page.get_by_role("dialog").get_by_role("button", name="End and erase").click()
    page.get_by_text("No sessions are kept.").wait_for()
    assert "no session begins" in talker.terminal.refused("sessions", "show", session_id)


def test_ten_thousand_events_stay_fast_and_are_followed(talker, page):
    session_id = said(talker, "talker", "many", "hello")
    page.goto(f"{talker.url}#/sessions/{session_id}")
    began = time.monotonic()
    page.get_by_text(re.compile("^It is there")).wait_for()
    assert time.monotonic() - began < 10
    assert page.evaluate("document.querySelectorAll('*').length") < 5000
    box = page.get_by_role("log")
    at_end = "box => box.scrollHeight - box.scrollTop - box.clientHeight < 30"
    assert box.evaluate(at_end)
    box.evaluate("box => box.scrollTop = 0")
    talker.terminal.run("sessions", "say", session_id, "hello")
    page.get_by_role("button", name=re.compile("new events: go to the end")).click()
    page.get_by_role("button", name="to the end").wait_for(state="detached")
    assert box.evaluate(at_end)


def test_a_question_is_answered_and_others_see_it(talker, new_page):
    from playwright.sync_api import expect

    asked(talker)
    mine, other = new_page(), new_page(width=360)
    for page in (mine, other):
        page.goto(talker.url + "#/questions")
        page.get_by_text("Really delete notes.txt?").wait_for()
        page.get_by_text(re.compile(r"^\d+:\d\d left$")).wait_for()
        expect(page).to_have_title(re.compile(r"^\(1\) "))
    mine.get_by_role("article").focus()
    mine.keyboard.press("a")
    for page in (mine, other):
        page.locator(".asked").get_by_text(re.compile("approved$")).wait_for()
        assert page.get_by_role("button", name="Approve").count() == 0
        expect(page).to_have_title(re.compile(r"^[^(]"))


def test_without_the_scope_nothing_of_a_session_is_seen(talker, page):
    asked(talker)
    talker.terminal.run("tokens", "create", "boss", "--scope", "admin")
    link = talker.terminal.run("console", "--scope", "read", "--print").stdout
    page.goto(re.search(r"http\S+", link)[0])
    page.get_by_role("navigation").get_by_role("link", name="Questions").click()
    page.get_by_text("takes the scope sessions").wait_for()
    assert page.get_by_text("notes.txt").count() == page.get_by_role("button", name="Approve").count() == 0
    assert page.get_by_role("link", name="Access").count() == 0
    page.get_by_role("navigation").get_by_role("link", name="Sessions").click()
    page.get_by_text("waits for a person").wait_for()
    assert page.locator("main a[href*=ses_]").count() == page.get_by_role("searchbox").count() == 0
    page.get_by_role("button", name="Log out").click()
    page.get_by_text("agentmgr console").wait_for()
    page.errors.clear()  # Chromium says that a request was refused


def test_tokens_are_made_shown_once_and_revoked(talker, page):
    page.goto(talker.url + "#/access")
    page.get_by_label("Name", exact=True).fill("no spaces please")
    page.get_by_role("button", name="Make a token").click()
    page.get_by_role("dialog").get_by_role("button", name="Make a token").click()
    page.locator(".problem").wait_for()  # the API's own words, and what was typed
    assert page.get_by_label("Name", exact=True).input_value() == "no spaces please"
    talker.terminal.run("tokens", "create", "boss", "--scope", "admin")
    link = talker.terminal.run("console", "--print").stdout
    page.goto(re.search(r"http\S+", link)[0])
    page.get_by_role("navigation").get_by_role("link", name="Access").click()
    page.get_by_text("this browser").wait_for()
    page.get_by_label("Name", exact=True).fill("dashboard")
    page.get_by_role("button", name="Make a token").click()
    key = page.get_by_role("dialog").locator(".key").inner_text()
    assert key.startswith("agm_") or len(key) > 30
    page.get_by_role("button", name="I have saved it").click()
    assert key not in page.content()
    page.get_by_role("button", name="Revoke dashboard").click()
    page.get_by_text("close code 1008").wait_for()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.get_by_text("dashboard is revoked.").wait_for()
    page.errors.clear()  # Chromium says that a name was refused
