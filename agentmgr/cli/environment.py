"""What services do not get of this shell: theirs is the environment of the moment that the manager began."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ..errors import AgentManagerError
from ..process.ownership import manager_pid
from ..process.paths import RuntimePaths
from .group import Cli
from .manager_interface import ReadsServices
from .out import note

# What services are given by their environment. Of the rest each terminal has its own.
_MATTERS = re.compile(
    r"(?!AGENTMGR_).*(key|token|secret|passw(or)?d|credentials|dsn|_(url|uri|base|endpoint|proxy))",
    re.IGNORECASE,
)


def stale(paths: RuntimePaths) -> list[str]:
    """The variables that this shell exports and the manager has not, or with another value.

    Only names leave this function. Empty where the manager is not this user's to look at.
    """
    pid = manager_pid(paths)
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
    managers = dict(word.split(b"=", 1) for word in words if b"=" in word)
    return sorted(
        os.fsdecode(name)
        for name, value in os.environb.items()
        if value and managers.get(name) != value and _MATTERS.fullmatch(os.fsdecode(name))
    )


async def mention_stale(cli: Cli, manager: ReadsServices, names: Collection[str]) -> None:
    """Says which variables of this shell do not reach these services, which a command has just started."""
    variables = stale(cli.paths)
    if not variables:
        return
    with suppress(AgentManagerError):  # the command has its answer already
        services = [service for service in await manager.list_services() if service.name in names]
        # What an env file has is read at each start.
        envs = [service.config.env for service in services if service.config.env_file is None]
        if missed := [name for name in variables if any(name not in env for env in envs)]:
            note(f"{', '.join(missed)} of this shell did not reach {' and '.join(names)}: {advice(*names)}")


def advice(*services: str) -> str:
    """How services get what this shell exports."""
    return (
        "services get the environment that the manager was started with; "
        "`agentmgr shutdown --leave-running` and "
        f"`agentmgr restart {' '.join(services) or 'NAME'}` from this shell give them this one"
    )
