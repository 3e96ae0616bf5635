"""Ten thousand services: what is not on screen costs nothing."""

import subprocess
import sys

LONG_MS = 200

REGISTER = """
import trio
from agentmgr import AgentManager

async def main():
    async with AgentManager("agent_manager.db") as manager:
        for number in range(10_000):
            await manager.register_service(f"service-{number:05}", command=["sleep", "1000"])

trio.run(main)
"""

# What kept the page from answering for longer than 50 ms, as Chromium itself notes it.
WATCH = """
window.longTasks = [];
new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((one) => one.duration)))
  .observe({ type: "longtask", buffered: true });
"""

SCROLL = """async () => {
  const box = document.querySelector(".table");
  for (let step = 0; step < 100; step += 1) {
    box.scrollTop = (box.scrollHeight * step) / 100;
    await new Promise((done) => requestAnimationFrame(done));
  }
  box.scrollTop = box.scrollHeight;
}"""


def test_ten_thousand_services_are_found_sorted_and_scrolled(site, page):
    subprocess.run([sys.executable, "-c", REGISTER], cwd=site.terminal.directory, check=True, timeout=300)
    site.manage()
    page.add_init_script(WATCH)
    page.goto(site.url + "#/services")
    page.get_by_role("link", name="service-00000").wait_for()
    assert page.locator("tbody tr").count() < 100
    page.evaluate("longTasks.length = 0")  # the first parse of all rows is not scrolling
    page.evaluate(SCROLL)
    page.get_by_role("link", name="service-09999").wait_for()
    page.get_by_role("button", name="Name").click()  # the other way round
    page.get_by_role("searchbox").fill("service-0123")
    page.get_by_role("link", name="service-01239").wait_for()
    assert page.locator("tbody tr:not(.space)").count() == 10
    assert max(page.evaluate("longTasks"), default=0) < LONG_MS
