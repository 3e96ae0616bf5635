"""The command line as a user types it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import end_all_in
from tests.terminal import Terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    try:
        terminal.close()
    finally:
        end_all_in(tmp_path)  # what a failed test left; a passed one asserts that there is nothing
