"""Where an agent's factory is: a file, a file and a name, or a module and a name."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from ..errors import AgentFileNotFound
from ..models import ServiceConfig


def settled(config: ServiceConfig) -> ServiceConfig:
    """The same configuration, independent of where this process happens to stand.

    Raises `AgentFileNotFound`.
    """
    directory = Path(config.cwd or ".").resolve()
    path = config.agent_factory_path
    return evolve(config, cwd=str(directory), agent_factory_path=located(path, directory) if path else None)


def located(factory_path: str, directory: Path) -> str:
    """The same factory, named so that it is found from any working directory.

    A file is looked for from `directory` and becomes absolute; `package.module:factory` stays as it is,
    because only the service's own interpreter can say whether it exists.

    Raises `AgentFileNotFound`.
    """
    name, colon, factory = factory_path.rpartition(":")
    if not (colon and factory.isidentifier()):
        name, colon, factory = factory_path, "", ""
    path = Path(directory, name)
    try:
        if path.is_file():
            return f"{path.resolve()}{colon}{factory}"
    except OSError as error:  # a name that is too long, a directory that may not be looked into
        raise AgentFileNotFound(f"agent file {_brief(path)} cannot be used: {error.strerror}") from None
    is_module = colon and all(part.isidentifier() for part in name.split(".")) and not name.endswith(".py")
    if is_module:
        return factory_path
    if path.is_dir():
        raise AgentFileNotFound(f"agent file {path} is a directory; name the Python file in it")
    raise AgentFileNotFound(f"agent file {path} does not exist; check the path, or use an absolute one")


def _brief(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:300]}…"
