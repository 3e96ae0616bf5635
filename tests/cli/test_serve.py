"""`agentmgr serve`: one agent by hand, in the command's own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("anew")  # where modules are found is a part of it

AGENT = """
import os
from .words import GREETING

def make():
    async def agent(message):
        return f"{GREETING} {message} {os.environ.get('AGENTMGR_TOKEN')}"
    return agent
"""


def test_a_package_is_found_in_the_current_directory_and_gets_no_key_of_the_operators(
    shell: Any, write: Callable[[str, str], str]
) -> None:
    (shell.directory / "my_package").mkdir()
    write("my_package/agents.py", AGENT)
    write("my_package/words.py", "GREETING = 'hello'\n")
    write("secrets.py", "raise SystemExit('planted')\n")
    shell.environment["AGENTMGR_TOKEN"] = "the operator's"
    with shell.background("serve", "my_package.agents:make", "--port", "0") as served:
        url = served.until("answers at").partition("answers at ")[2].partition(";")[0]
        assert shell.ok("chat", url, "--once", "world").strip() == "hello world None"


def test_a_clients_words_in_an_error_do_not_act_on_the_terminal(
    shell: Any, write: Callable[[str, str], str]
) -> None:
    write("failing.py", "async def agent(message):\n    raise ValueError(message)\n")
    with shell.background("serve", "failing.py", "--port", "0") as served:
        url = served.until("answers at").partition("answers at ")[2].partition(";")[0]
        shell.fails("chat", url, "--once", "\x1b[2Jwords\u202e")
        assert r"\x1b[2Jwords\u202e" in served.until("ValueError: ")
