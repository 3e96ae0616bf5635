"""The log window: much comes, little is drawn, and what a program writes stays text."""

import re
import sys

from websockets.sync.client import connect

LONG_MS = 200

# Writes as many lines as it is asked to, as fast as it can or in so many seconds.
NOISY = r"""
import sys
import trio

async def agent(message):
    count, seconds = map(int, message.split())
    step = 10_000 if not seconds else count // (seconds * 50)
    for begin in range(0, count, step):
        end = min(begin + step, count)
        sys.stdout.write("".join(f"line {n} of {count}\n" for n in range(begin, end)))
        await trio.sleep(0.02 if seconds else 0)
    return "written"
"""

HOSTILE = r"""
import time

print("<img src=x onerror=alert(1)> \x1b[31mred\x1b[0m \u202ebidi \x1b]0;title\x07\x1b[2J", flush=True)
print("x" * 1_000_000, flush=True)
time.sleep(1000)
"""

# What kept the page busy for longer than 50 ms, and when lines were drawn anew.
WATCH = """() => {
  window.longTasks = [];
  window.paints = [];
  new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((one) => one.duration)))
    .observe({ type: "longtask" });
  new MutationObserver(() => paints.push(performance.now()))
    .observe(document.querySelector(".seen"), { childList: true, subtree: true, characterData: true });
}"""

SCROLL = """async () => {
  const box = document.querySelector(".loglines");
  for (let step = 100; step >= 0; step -= 1) {
    box.scrollTop = (box.scrollHeight * step) / 100;
    await new Promise((done) => requestAnimationFrame(done));
  }
}"""

MOST_IN_A_SECOND = (
    "Math.max(0, ...paints.map((at) => paints.filter((one) => one >= at && one < at + 1000).length))"
)


def opened(site, page, tmp_path):
    """The log of a service that writes what it is asked to; its address."""
    file = tmp_path / "noisy.py"
    file.write_text(NOISY)
    site.terminal.run("register", "noisy", str(file), "--auto-start", "--log-max-bytes", str(10**8))
    site.manage()
    page.goto(site.url + "#/services/noisy?tab=logs")
    page.get_by_text("is served at").wait_for()
    page.evaluate(WATCH)
    return site.gateway + "/services/noisy"


def write(gateway, lines, seconds=0):
    with connect(gateway) as socket:
        socket.send(f"{lines} {seconds}")
        assert socket.recv(timeout=60) == "written"


def test_a_million_lines_come_and_scroll(site, page, tmp_path):
    write(opened(site, page, tmp_path), 1_000_000)
    page.get_by_text("line 999999 of 1000000", exact=True).wait_for(timeout=60_000)
    assert page.locator(".loglines .line").count() < 100
    assert max(page.evaluate("longTasks"), default=0) < LONG_MS
    page.evaluate(SCROLL)
    page.get_by_text("line 0 of 1000000", exact=True).wait_for()
    box = page.get_by_role("region", name="Lines")
    box.evaluate("(element) => { element.scrollTop = element.scrollHeight / 2 }")
    page.get_by_text(re.compile(r"^line (49|50)\d{4} of 1000000$")).first.wait_for()
    assert max(page.evaluate("longTasks"), default=0) < LONG_MS


def test_a_flood_of_a_hundred_thousand_lines_leaves_the_page_in_use(site, page, tmp_path):
    write(opened(site, page, tmp_path), 100_000, seconds=4)
    page.get_by_text("line 99999 of 100000", exact=True).wait_for()
    assert 4 < page.evaluate(MOST_IN_A_SECOND) <= 21  # the second may begin with one and end with one
    assert max(page.evaluate("longTasks"), default=0) < LONG_MS


def test_who_scrolls_up_stays_there_and_is_told_how_much_is_new(site, page, tmp_path):
    gateway = opened(site, page, tmp_path)
    write(gateway, 1000)
    page.get_by_text("line 999 of 1000", exact=True).wait_for()
    page.get_by_role("region", name="Lines").hover()
    page.mouse.wheel(0, -4000)
    page.get_by_label("Follow").and_(page.locator(":not(:checked)")).wait_for()
    top = page.locator(".loglines .line").nth(15).inner_text()
    write(gateway, 250)
    fresh = page.get_by_role("button", name="250 new lines")
    fresh.wait_for()
    assert page.locator(".loglines .line").nth(15).inner_text() == top
    fresh.click()
    page.get_by_text("line 249 of 250", exact=True).wait_for()
    assert page.get_by_label("Follow").is_checked()


def test_a_line_far_back_is_found_by_the_server_and_gone_to(site, page, tmp_path):
    write(opened(site, page, tmp_path), 100_000)
    page.reload()
    page.get_by_text("line 99999 of 100000", exact=True).wait_for()
    page.get_by_role("searchbox").fill("line 70 of")
    page.get_by_role("link", name="line 70 of 100000").click()
    lines = page.get_by_role("region", name="Lines")
    lines.get_by_text("line 71 of 100000", exact=True).wait_for()
    page.reload()  # the address has it
    lines.get_by_text("line 71 of 100000", exact=True).wait_for()
    page.get_by_role("button", name="To the end, and follow").click()
    lines.get_by_text("line 99999 of 100000", exact=True).wait_for()


def test_colours_are_spans_and_hostile_output_stays_text(site, page, tmp_path):
    file = tmp_path / "hostile.py"
    file.write_text(HOSTILE)
    site.terminal.run("register", "hostile", "--auto-start", "--", sys.executable, str(file))
    site.manage()
    page.goto(site.url + "#/services/hostile?tab=logs")
    line = page.locator(".loglines .line").first
    line.get_by_text("red", exact=True).wait_for()
    assert line.locator("span.ansi-red-fg").inner_text() == "red"
    assert "<img src=x onerror=alert(1)>" in line.inner_text()
    assert r"\u202ebidi" in line.inner_text()
    assert page.locator(".loglines img").count() == 0
    page.get_by_role("button", name="998000 more characters").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("heading", name="The whole line").wait_for()
    dialog.get_by_role("button", name="Close").click()


def test_the_whole_log_is_downloaded(site, page, tmp_path):
    write(opened(site, page, tmp_path), 30_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "noisy-0.log"
    text = download.value.path().read_text()
    assert [line for line in text.splitlines() if line.startswith("line ")] == [
        f"line {number} of 30000" for number in range(30_000)
    ]
