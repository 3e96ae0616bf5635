"""Which services a command is for: names, patterns such as `web-*`, `--tags`, `--all`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import asyncclick as click
import trio

from ..errors import AgentManagerError, ServiceNotFound
from ..models import Service
from .group import Cli
from .managers import find_manager
from .names import SERVICE
from .options import split_tags
from .out import complain, say, show_traceback

F = TypeVar("F", bound=Callable[..., Any])

AT_ONCE = 64  #: requests to the manager


def selection_options(function: F) -> F:
    """`NAME...`, `--tags` and `--all`: `names`, `tags` and `everything` of the command."""
    function = click.option("--all", "everything", is_flag=True, help="All services.")(function)
    function = click.option(
        "--tags", metavar="A,B", default="", help="The services with any of these tags, too."
    )(function)
    return click.argument("names", metavar="[NAME|PATTERN]...", nargs=-1, type=SERVICE)(function)


async def selected(
    cli: Cli, names: Sequence[str], tags: str, everything: bool, *, only_wanted: bool = False
) -> list[str]:
    """Each name once. Raises `ServiceNotFound` for a pattern or tags that no service has.

    A name without `*`, `?` and `[` may be one that is not registered. `only_wanted`: of those that are not
    named, only the ones that should run now.
    """
    if not (names or tags or everything):
        raise click.UsageError("Name a service, or give a pattern such as 'web-*', --tags or --all.")
    if not (tags or everything or any(map(_is_pattern, names))):
        return list(dict.fromkeys(names))
    services = await _registered(cli)
    chosen = [name for name in names if not _is_pattern(name)]
    which = " that should run" if only_wanted else ""
    if only_wanted:
        services = [service for service in services if service.is_wanted or service.name in chosen]
    for name in filter(_is_pattern, names):
        matching = [service.name for service in services if fnmatchcase(service.name, name)]
        if not matching:
            raise ServiceNotFound(f"no service{which} has a name like {name!r}; `agentmgr list` shows all")
        chosen += matching
    if tags:
        tagged = [service.name for service in services if service.tags & split_tags(tags)]
        if not tagged:
            raise ServiceNotFound(f"no service{which} has one of the tags {tags}; `agentmgr list` shows all")
        chosen += tagged
    if everything:
        if not services:
            raise ServiceNotFound("no service should run" if only_wanted else "no services are registered")
        chosen += [service.name for service in services]
    return list(dict.fromkeys(chosen))


def _is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


async def _registered(cli: Cli) -> list[Service]:
    found = await find_manager(cli.paths)
    if found.client is not None:
        return await found.client.list_services()
    from .offline import offline

    async with offline(cli.paths) as manager:
        return await manager.list_services()


async def all_of(cli: Cli, names: Sequence[str], done: str, do: Callable[[str], Awaitable[None]]) -> int:
    """Awaits `do(name)` for all of them at once: one may wait for another, and one that fails keeps no other
    from its turn.

    Says which failed, and of several what came of all: `done` is what they are then. Returns the exit code.
    """
    failed: dict[str, str] = {}
    at_once = trio.CapacityLimiter(AT_ONCE)

    async def one(name: str) -> None:
        try:
            async with at_once:
                await do(name)
        except AgentManagerError as error:
            failed[name] = error.message
            if cli.debug:
                show_traceback(error)
            complain(error.message)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(one, name)
    if len(names) > 1:
        which = f"; failed: {', '.join(name for name in names if name in failed)}" if failed else ""
        say(f"{len(names) - len(failed)} of {len(names)} services {done}{which}")
    return int(bool(failed))
