"""Where an agent's factory is: a file, a file and a name, or a module and a name."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import evolve

from ..errors import AgentFileNotFound, FieldProblem
from ..models import ServiceConfig
from ..process.paths import absolute, factory_parts


def settled(config: ServiceConfig) -> ServiceConfig:
    """The same configuration, independent of where this process happens to stand.

    Links stay as they are given: where they lead is seen at each start. Raises `AgentFileNotFound`, and
    `InvalidRequest` when the current directory was removed.
    """
    directory = absolute(config.cwd or ".")
    path = config.agent_factory_path
    try:
        path = located(path, directory) if path else None
    except AgentFileNotFound as error:
        problem = FieldProblem("agent_factory_path", error.message)
        raise AgentFileNotFound(error.message, fields=[problem]) from None
    return evolve(config, cwd=str(directory), agent_factory_path=path)


def located(factory_path: str, directory: Path) -> str:
    """The same factory, named so that it is found from any working directory.

    A file is looked for from `directory` and becomes absolute; `package.module:factory` stays as it is,
    because only the service's own interpreter can say whether it exists.

    Raises `AgentFileNotFound`.
    """
    name, colon, factory = factory_parts(factory_path)
    path = Path(directory, name)
    try:
        if path.is_file():
            return f"{path}{colon}{factory}"
    except OSError as error:  # a name that is too long, a directory that may not be looked into
        raise AgentFileNotFound(f"agent file {_brief(path)} cannot be used: {error.strerror}") from None
    is_module = colon and all(part.isidentifier() for part in name.split(".")) and not name.endswith(".py")
    if is_module:
        return factory_path
    if path.is_dir():
        raise AgentFileNotFound(f"agent file {path} is a directory; name the Python file in it")
    raise AgentFileNotFound(f"agent file {path} does not exist; check the path, or use an absolute one")


def same(one: str | None, other: str) -> bool:
    """Whether two located factories are one, also where the file of only one is named by a link."""
    if one is None or one == other:
        return one == other
    (file, *factory), (other_file, *other_factory) = factory_parts(one), factory_parts(other)
    return factory == other_factory and os.path.realpath(file) == os.path.realpath(other_file)


def _brief(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:300]}…"
