"""The public names, and only those; importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import agentmgr


@pytest.mark.parametrize("name", agentmgr.__all__)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(agentmgr, name) is not None


def test_type_checkers_are_told_of_the_same_names() -> None:
    tree = ast.parse(Path(agentmgr.__file__).read_text())
    told = {
        alias.asname
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert told == set(agentmgr.__all__) - {"__version__"}


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        agentmgr.nonsense  # noqa: B018


def test_importing_the_package_imports_no_other() -> None:
    code = "import sys, agentmgr; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"trio", "attrs", "quart", "asyncio"} & set(done.stdout.split())
