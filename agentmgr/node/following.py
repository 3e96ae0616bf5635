"""Where the manager of a node is, and which manager that may be: for whoever moves it."""

from __future__ import annotations

from pathlib import Path

from ..dialing import ManagerAddress, ManagerFile
from ..generation import Generation, Obeyed


def manager_file(directory: Path) -> ManagerFile:
    """Of the node in `directory`."""
    return ManagerFile(directory / "manager.json")


def follow(directory: Path, manager: ManagerAddress, generation: Generation) -> Generation | None:
    """Has the node in `directory`, whether its daemon runs or not, be one of the manager there.

    A daemon that runs links there within two seconds. Returns that of a newer manager where the node obeys
    one, and changes nothing then: the caller's manager has been replaced. Raises `CannotUseCluster`.
    """
    newer = Obeyed(directory).read()
    if newer is not None and generation.yields_to(newer):
        return newer
    manager_file(directory).write(manager)
    return None
