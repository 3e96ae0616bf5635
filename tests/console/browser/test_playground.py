"""The playground: a conversation by the gateway, cut and taken up again; the same as programs, which run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import EXAMPLES

ROOT = Path(__file__).parents[3]


def say(page, text):
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def test_one_talks_answers_a_question_and_stops_a_turn(site, page):
    site.run(EXAMPLES / "streaming_agent.py")
    page.goto(site.url + "#/playground?service=streaming_agent")
    say(page, "delete notes.txt")
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("Done: notes.txt is gone.").wait_for()
    say(page, "delete todo.txt")
    page.get_by_role("button", name="Deny").wait_for()
    page.get_by_role("button", name="Stop the turn").click()
    page.get_by_text("The turn was interrupted").wait_for()
    page.locator(".talkfacts").get_by_role("link", name="streaming_agent").wait_for()


def test_a_cut_loses_nothing_and_a_reload_goes_on(site, page):
    site.run(EXAMPLES / "streaming_agent.py")
    page.goto(site.url + "#/playground?service=streaming_agent")
    say(page, "hello")
    page.get_by_text("Say: delete NAME.").wait_for()
    say(page, "delete notes.txt")
    page.get_by_role("button", name="Approve").wait_for()
    page.get_by_role("button", name="Cut the connection").click()
    page.get_by_text("cut by you").wait_for()
    site.terminal.run("questions", "answer", session_of(page), "yes")  # another client speaks meanwhile
    page.get_by_role("button", name="Reconnect").click()
    page.get_by_text("Done: notes.txt is gone.").wait_for()
    page.get_by_text(re.compile(r"none missing")).wait_for()
    page.get_by_text(re.compile(r"reconnected: 1; events received afterwards: \d+")).wait_for()
    page.reload()
    page.get_by_text("Done: notes.txt is gone.").wait_for()
    page.get_by_text("delete notes.txt", exact=True).wait_for()  # what the person said too


def session_of(page):
    return re.search(r"session=(ses_[0-9a-f]+)", page.url)[1]


def test_a_stopped_service_is_said_to_be_and_gets_the_message_when_it_was_started(site, page):
    site.run(EXAMPLES / "echo_agent.py", EXAMPLES / "notes_agent.py")
    site.terminal.run("stop", "echo_agent")
    page.goto(site.url + "#/playground?service=echo_agent")
    page.get_by_role("button", name="Start").wait_for()
    say(page, "hello")
    page.get_by_text("no_service_available").wait_for()
    page.get_by_role("button", name="Start").click()
    page.get_by_text("You said: hello").wait_for()
    page.errors.clear()  # Chromium says that the WebSocket failed; so it did


def test_where_the_gateway_asks_for_tokens_the_page_gets_itself_a_ticket(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    site.terminal.run("tokens", "create", "boss", "--scope", "admin", "--scope", "connect")
    page.goto(site.terminal.run("console", "--print").stdout.strip().splitlines()[-1])
    page.get_by_role("link", name="Playground").click()
    say(page, "hello")
    page.locator(".talk").get_by_text("You said: hello").wait_for()
    assert "ticket" not in page.url


def test_hostile_answers_stay_text(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/playground?service=echo_agent")
    say(page, "<img src=x onerror=alert(1)>\u202e")
    page.get_by_text("You said: <img src=x onerror=alert(1)>\\u202e").wait_for()
    assert page.locator("main img").count() == 0
    page.get_by_text("Raw frames").click()
    page.get_by_text("agent.final_answer").first.wait_for()


@pytest.mark.parametrize("which", ["python", "javascript", "curl"])
def test_the_samples_run_as_they_are_shown(site, page, tmp_path, which):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + f"#/playground?service=echo_agent&code={which}")
    say(page, "hi there")
    page.locator(".talk").get_by_text("You said: hi there").wait_for()
    sample = page.locator(".sample code").inner_text()
    assert "You said: hi there" in SAMPLES[which](page, sample, tmp_path)


def run_python(page, sample, tmp_path):
    program = tmp_path / "sample.py"
    program.write_text(sample)
    done = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return done.stdout


def run_javascript(page, sample, tmp_path):
    said = []
    page.on("console", lambda line: said.append(line.text))
    page.evaluate(f"new Promise((done) => {{ {sample}\n socket.addEventListener('close', done); }})")
    return "\n".join(said)


def run_curl(page, sample, tmp_path):
    with subprocess.Popen(
        ["bash", "-c", sample], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as shell:
        seen = ""
        for line in shell.stdout:
            seen += line
            if '"agent.final_answer"' in line:
                break
        os.killpg(shell.pid, 15)  # its reader's Ctrl-C
    return seen


SAMPLES = {"python": run_python, "javascript": run_javascript, "curl": run_curl}
