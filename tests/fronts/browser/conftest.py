"""CopilotKit's own chat in a real browser, before a real gateway that is its only server.

These tests run with AGENTMGR_TEST_COPILOTKIT alone, the directory where the page of examples/copilotkit was
built: `.ci/copilotkit` does, in a stage of its own.
"""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.console.browser.conftest import Site
from tests.console.browser.conftest import browser as browser
from tests.console.browser.conftest import new_page as new_page
from tests.processes import end_all_in

BUILT = os.environ.get("AGENTMGR_TEST_COPILOTKIT")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    skip = pytest.mark.skip(reason="runs with AGENTMGR_TEST_COPILOTKIT alone, see .ci/copilotkit")
    for item in items:
        if BUILT is None and here in item.path.parents:
            item.add_marker(skip)


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Where the page is: not where the gateway is."""
    assert BUILT is not None
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=BUILT)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


AGENT = """
import trio
from agentmgr.agent import thinking, tool_call, tool_result

async def agent(message, session):
    if message == "count":
        for number in range(60):
            yield f"<{number}>"
            await trio.sleep(0.1)
    elif message == "for ever":
        while True:
            yield "tick "
            await trio.sleep(0.1)
    elif message == "delete":
        yield "Looking. "
        sure = await session.confirm("delete", {"name": "x"}, message="Really delete it?")
        yield "It is gone." if sure else "It stays."
    elif message == "look":
        yield thinking("hm")
        yield "First. "
        yield tool_call("look", {"at": 1}, step_id="one")
        yield tool_result("look", "a cat", step_id="one")
        yield "It is a cat."
    elif message == "fail":
        yield "Well. "
        raise ValueError("bad")
    else:
        yield f"you said {message}, number {len(session.history) // 2 + 1}"
"""


@pytest.fixture(scope="module")
def talking(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A manager with the agent above, whose gateway lets the page in."""
    directory = tmp_path_factory.mktemp("talking")
    (directory / "agent.py").write_text(AGENT)
    site = Site(directory)
    site.run(directory / "agent.py", "--allow-origin", origin)
    yield site
    try:
        site.close()
    finally:
        end_all_in(directory)
