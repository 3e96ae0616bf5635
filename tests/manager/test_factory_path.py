"""Where an agent's factory is."""

from pathlib import Path

import pytest

from agentmgr.errors import AgentFileNotFound
from agentmgr.manager.factory_path import located, settled
from agentmgr.models import ServiceConfig


def test_a_file_becomes_absolute_and_keeps_its_factory(tmp_path: Path) -> None:
    (tmp_path / "agent.py").touch()
    assert located("agent.py", tmp_path) == f"{tmp_path}/agent.py"
    assert located("agent.py:make", tmp_path) == f"{tmp_path}/agent.py:make"


def test_a_colon_in_a_file_name_is_no_factory_when_the_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "odd:1.py").touch()
    assert located("odd:1.py", tmp_path) == f"{tmp_path}/odd:1.py"


def test_a_module_is_left_to_the_services_own_interpreter(tmp_path: Path) -> None:
    assert located("package.module:factory", tmp_path) == "package.module:factory"


@pytest.mark.parametrize("path", ["missing.py", "missing.py:make", "/nowhere/agent.py", "no such file", ""])
def test_what_is_not_there_is_said_with_the_place_that_was_looked_at(tmp_path: Path, path: str) -> None:
    with pytest.raises(AgentFileNotFound):
        located(path, tmp_path)


def test_a_directory_is_not_an_agent_file(tmp_path: Path) -> None:
    with pytest.raises(AgentFileNotFound, match="is a directory"):
        located(".", tmp_path)


def test_a_relative_file_is_looked_for_in_the_services_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "agent.py").touch()
    monkeypatch.chdir(tmp_path)
    config = settled(ServiceConfig(agent_factory_path="agent.py", cwd="inner"))
    assert config.agent_factory_path == f"{tmp_path}/inner/agent.py"
    assert config.cwd == f"{tmp_path}/inner"
