"""The manager's events: sentences, filters in the address, the pause, details as JSON."""

import re
import sys

from .conftest import EXAMPLES

CRASHES = "import sys, time; print('<img src=x onerror=alert(1)>', flush=True); time.sleep(1.5); sys.exit(3)"


def test_a_crash_reads_as_a_sentence_with_its_reason_and_what_comes_next(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    site.terminal.run("register", "crashing", "--", sys.executable, "-c", CRASHES)
    site.terminal.run("start", "crashing", "--no-wait")
    page.goto(site.url + "#/events?kind=trouble")
    row = page.get_by_role("row", name=re.compile("crashing crashed: exit code 3; restart in"))
    row.first.get_by_role("link", name="crashing crashed").click()
    assert "event=" in page.url
    page.get_by_role("heading", name="instance.backoff").wait_for()
    page.get_by_text("<img src=x onerror=alert(1)>").first.wait_for()
    page.get_by_text('"last_exit": "exit code 3"').wait_for()
    page.go_back()
    page.get_by_role("heading", name="instance.backoff").wait_for(state="detached")


def test_events_from_before_the_page_was_open_are_found_and_the_filter_is_in_the_address(site, page):
    site.run(EXAMPLES / "echo_agent.py", EXAMPLES / "notes_agent.py")
    page.goto(site.url + "#/events")
    page.get_by_role("row", name=re.compile("echo_agent is ready, as process")).first.wait_for()
    page.get_by_role("searchbox", name="Service").fill("notes")
    page.get_by_role("row", name=re.compile("echo_agent is ready")).wait_for(state="detached")
    page.reload()
    page.get_by_role("row", name=re.compile("notes_agent is ready")).first.wait_for()
    assert page.get_by_role("row", name=re.compile("echo_agent is ready")).count() == 0


def test_a_pause_keeps_what_is_seen_and_counts_what_comes(site, page):
    site.run(EXAMPLES / "echo_agent.py", EXAMPLES / "notes_agent.py")
    page.goto(site.url + "#/events")
    page.get_by_role("row", name=re.compile("echo_agent is ready")).wait_for()
    page.get_by_role("button", name="Pause").click()
    site.terminal.run("stop", "echo_agent")
    follow = page.get_by_role("button", name=re.compile(r"Follow \(\d+ new\)"))
    follow.wait_for()
    assert page.get_by_role("row", name=re.compile("echo_agent has stopped")).count() == 0
    follow.click()
    page.get_by_role("row", name=re.compile("echo_agent has stopped")).wait_for()


def test_ten_thousand_events_stay_fast(site, page):
    site.run(EXAMPLES / "echo_agent.py")
    page.goto(site.url + "#/events")
    page.get_by_role("row", name=re.compile("echo_agent is ready")).wait_for()
    frames = "".join(
        f"id: {i}\nevent: service.changed\n"
        f'data: {{"kind":"service.changed","at":"2026-01-01T00:00:00Z",'
        f'"service_id":"svc_{i % 50:016x}","instance_id":null,"detail":{{"fields":"weight"}},'
        f'"event_id":{i}}}\n\n'
        for i in range(1, 10_001)
    )
    page.route(
        "**/api/v1/events?since=0*",
        lambda route: route.fulfill(status=200, headers={"Content-Type": "text/event-stream"}, body=frames),
    )
    page.add_init_script(
        "window.longTasks = [];"
        "new PerformanceObserver((seen) => longTasks.push(...seen.getEntries().map((one) => one.duration)))"
        ".observe({entryTypes: ['longtask']});"
    )
    page.reload()
    page.get_by_text(re.compile("10,000 of 10,0")).or_(
        page.get_by_text(re.compile("of 10,0"))
    ).first.wait_for()
    page.wait_for_timeout(500)  # an observer hears of the loading later
    page.evaluate("longTasks.length = 0")
    page.get_by_role("searchbox", name="Text").press_sequentially("weight")
    page.get_by_role("region", name="Events").hover()
    for _ in range(20):
        page.mouse.wheel(0, 4000)
    page.wait_for_timeout(300)
    assert max(page.evaluate("longTasks"), default=0) < 200
