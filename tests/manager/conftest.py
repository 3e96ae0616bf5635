"""A database in a directory of its own, and agent files to register."""

from collections.abc import Callable
from pathlib import Path

import pytest

ECHO = """
def create_agent():
    async def answer(message):
        return f"echo: {message}"
    return answer
"""


@pytest.fixture(autouse=True)
def _fork_servers_fork(fork_servers_fork: None) -> None:
    pass


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "manager.db"


@pytest.fixture
def agent_file(tmp_path: Path) -> Callable[..., str]:
    """Writes an agent file and returns its path."""

    def write(source: str = ECHO, name: str = "agent.py") -> str:
        path = tmp_path / name
        path.write_text(source)
        return str(path)

    return write
