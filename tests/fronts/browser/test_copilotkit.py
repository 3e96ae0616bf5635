"""CopilotKit's chat component: it talks, approves, stops, and goes on after it was loaded again."""

import re
from uuid import uuid4

import pytest


@pytest.fixture
def page(new_page):
    page = new_page()
    page.set_default_timeout(60_000)  # it is large, and the machine may be busy
    return page


@pytest.fixture(params=["", "&agent=agent"], ids=["default", "by its name"])
def address(request, origin, talking):
    return f"{origin}/?gateway={http(talking)}{request.param}#{uuid4()}"


@pytest.fixture
def chat(page, origin, talking):
    page.goto(f"{origin}/?gateway={http(talking)}#{uuid4()}")
    return Chat(page)


def http(site):
    return site.gateway.replace("ws://", "http://")


class Chat:
    def __init__(self, page):
        self.page = page
        self.button = page.get_by_test_id("copilot-send-button")  # while a run goes on it stops that

    def say(self, text):
        self.page.get_by_test_id("copilot-chat-textarea").fill(text)
        self.button.click()

    def see(self, text):
        self.page.get_by_test_id("copilot-assistant-message").get_by_text(text).last.wait_for()

    def stop(self):
        self.button.click()
        # Until nothing runs, and nothing is typed that could be sent.
        script = "() => document.querySelector('[data-testid=copilot-send-button]').disabled"
        self.page.wait_for_function(script)

    def choose(self, word):
        self.page.locator(".question").get_by_role("button", name=word).click()

    @property
    def said(self):
        """All messages, in their order, each by the side it is on."""
        script = """() => [...document.querySelectorAll(
            '[data-testid="copilot-user-message"], [data-testid="copilot-assistant-message"]')].map(
            each => (each.dataset.testid.includes("user") ? "> " : "") + each.innerText.trim())"""
        return self.page.evaluate(script)


def test_one_talks_with_the_agent_of_a_name_or_by_the_rules(page, address):
    page.goto(address)
    chat = Chat(page)
    chat.say("hello")
    chat.see("you said hello, number 1")
    chat.say("again")
    chat.see("you said again, number 2")  # it is one session
    assert chat.said == ["> hello", "you said hello, number 1", "> again", "you said again, number 2"]


def test_the_answer_is_seen_while_it_is_made_and_a_stop_ends_the_turn(chat, talking):
    chat.say("for ever")
    chat.see("tick tick tick")
    chat.stop()
    chat.say("hello")
    chat.see("you said hello, number 2")
    assert {row["state"] for row in talking.terminal.json("sessions", "agent")} == {"idle"}


@pytest.mark.parametrize(("word", "end"), [("Yes", "It is gone."), ("No", "It stays.")])
def test_a_question_is_answered_and_the_same_turn_goes_on(chat, word, end):
    chat.say("delete")
    chat.page.get_by_text("Really delete it?").wait_for()
    chat.choose(word)
    chat.see(end)
    chat.page.get_by_text("Really delete it?").wait_for(state="detached")
    chat.say("hello")
    chat.see("you said hello, number 2")


def test_what_an_agent_thinks_and_its_tools_do_is_in_the_conversation_and_runs_nothing_here(chat):
    runs = []
    chat.page.on(
        "request", lambda request: runs.append(request.url) if request.url.endswith("/run") else None
    )
    chat.say("look")
    chat.see("It is a cat.")
    chat.say("hello")
    chat.see("you said hello, number 2")
    assert len(runs) == 2
    chat.page.reload()
    chat.see("you said hello, number 2")
    chat.say("again")
    chat.see("you said again, number 3")


def test_a_turn_that_fails_says_so_and_the_conversation_goes_on(chat):
    chat.say("fail")
    chat.see("Well.")
    chat.page.wait_for_function("() => !document.querySelector('[data-testid=copilot-loading-cursor]')")
    assert any("ValueError" in error for error in chat.page.errors), chat.page.errors
    chat.page.errors.clear()
    chat.say("hello")
    chat.see("you said hello, number 2")


def test_a_page_that_is_loaded_again_in_the_middle_of_an_answer_goes_on_with_it(chat):
    chat.say("hello")
    chat.see("number 1")
    chat.say("count")
    chat.see("<3>")
    chat.page.reload()
    chat.see("<20>")
    assert "<59>" not in chat.said[-1]  # it is seen while it is made
    chat.see("<59>")
    whole = "".join(f"<{number}>" for number in range(60))
    assert chat.said == ["> hello", "you said hello, number 1", "> count", whole]
    chat.say("hello")
    chat.see("number 3")


def test_a_question_is_still_there_after_a_reload(chat):
    chat.say("delete")
    chat.page.get_by_text("Really delete it?").wait_for()
    chat.page.reload()
    chat.choose("Yes")
    chat.see("It is gone.")
    assert chat.said[0] == "> delete"
    assert re.fullmatch(r"Looking\. It is gone\.|It is gone\.", chat.said[-1])


def test_a_stop_after_a_reload_ends_the_turn(chat):
    chat.say("for ever")
    chat.see("tick tick tick")
    chat.page.reload()
    chat.see("tick tick tick")
    chat.stop()
    chat.say("hello")
    chat.see("you said hello, number 2")


def test_a_conversation_outlives_the_gateway_and_the_agent(chat, talking):
    chat.say("hello")
    chat.see("number 1")
    talking.stop()
    talking.run(
        talking.terminal.directory / "agent.py", "--allow-origin", chat.page.evaluate("location.origin")
    )
    chat.page.reload()
    chat.see("you said hello, number 1")
    chat.say("again")
    chat.see("number 2")


def test_a_page_with_a_single_endpoint_talks_too(chat):
    chat.page.route("**/copilotkit/info", lambda route: route.abort())  # then it asks by POST /copilotkit
    chat.page.reload()
    chat.say("delete")
    chat.choose("Yes")
    chat.see("It is gone.")
    chat.say("for ever")
    chat.see("tick tick tick")
    chat.stop()
    chat.say("hello")
    chat.see("you said hello, number 3")
    chat.page.errors.clear()  # of the request that was aborted


def test_a_page_of_another_origin_may_not_ask(page, origin, talking):
    page.goto(f"{origin.replace('localhost', '127.0.0.1')}/?gateway={http(talking)}#x")
    page.wait_for_function(
        "() => performance.getEntriesByType('resource').some(e => e.name.endsWith('/info'))"
    )
    assert any("CORS" in error for error in page.errors)
    page.errors.clear()
