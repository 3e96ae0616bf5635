"""What services do not get of this shell: theirs is the environment of the moment that the manager began."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import AgentManagerError, InvalidRequest
from ..models import Service
from ..process.ownership import manager_pid
from ..process.paths import RuntimePaths
from .group import Cli
from .manager_interface import ManagerInterface, ReadsServices
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
    managers = _managers(paths)
    if managers is None:
        return []
    return sorted(
        os.fsdecode(name)
        for name, value in os.environb.items()
        if value and managers.get(name) != value and _MATTERS.fullmatch(os.fsdecode(name))
    )


def _managers(paths: RuntimePaths) -> dict[bytes, bytes] | None:
    """The environment of the manager that runs; None where it is not this user's to look at."""
    try:
        words = Path(f"/proc/{manager_pid(paths)}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return dict(word.split(b"=", 1) for word in words if b"=" in word)


def lacking(paths: RuntimePaths, service: Service) -> list[str]:
    """The variables that the service requires and lacks, and this shell has."""
    config = service.config
    wanted = [name for name in config.required_env if os.environ.get(name)]
    if not wanted or (managers := _managers(paths)) is None:
        return []
    from ..supervisor.environment import names_given

    given = names_given(config)
    return sorted(name for name in wanted if name not in given and not managers.get(os.fsencode(name)))


def shells(names: Iterable[str]) -> dict[str, str]:
    """Raises `InvalidRequest` for one that this shell does not export."""
    if missing := [name for name in names if name not in os.environ]:
        raise InvalidRequest(f"{', '.join(missing)} not set in this shell: `export {missing[0]}=…` first")
    return {name: os.environ[name] for name in names}


async def hand_over(manager: ManagerInterface, ref: str, names: Iterable[str]) -> None:
    """Keeps these variables of this shell with the service, as `--env` does. Raises `InvalidRequest`."""
    if variables := shells(names):
        service = await manager.get_service(ref)
        changes = {"env": {**service.config.env, **variables}}  # others come hidden, and stay as they are
        await manager.update_service(ref, changes, expected_version=service.version)


async def update(cli: Cli, manager: ManagerInterface, ref: str) -> None:
    """Gives it what this shell has of its variables, and of keys and the like that the manager lacks."""
    config = (await manager.get_service(ref)).config
    names = {name for name in (*config.env, *config.required_env) if name in os.environ} | {*stale(cli.paths)}
    await hand_over(manager, ref, names)
    if names:
        note(f"{ref} has this shell's {', '.join(sorted(names))} now")


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
    which = " ".join(services) or "NAME"
    return (
        "services get the environment that the manager was started with; "
        f"`agentmgr restart --update-env {which}` from this shell gives them this one's, or "
        f"`agentmgr shutdown --leave-running` and `agentmgr restart {which}` all of it"
    )
