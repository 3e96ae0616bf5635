"""Which modules of an agent a second stage of the fork server imports ahead, and which services share it.

    preload=off            none
    preload=NAME,…         these, whatever the agent imports
    preload=auto           those that its host has imported at its start, of installed packages, if they are
                           enough to be worth a process

Never the agent's own files: what is in a directory of the author's changes from start to start. Nor a module
whose name one of his files has: he would get ours in place of his.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

from attrs import frozen

AUTO, OFF = "auto", "off"

WORTH_MODULES = 20
"""With fewer, importing them takes less than 10 ms: a process of some MiB would not be worth it."""


def chosen(preload: str) -> tuple[str, ...] | None:
    """The modules that the option names; None: its host says which."""
    if preload == AUTO:
        return None
    return () if preload == OFF else tuple(dict.fromkeys(name.strip() for name in preload.split(",")))


def installed(origins: Iterable[tuple[str, str | None]], roots: Collection[str]) -> tuple[str, ...]:
    """The names, in their order, of modules whose file is below one of `roots`.

    `roots`: directories of the standard library and of installed packages. A file elsewhere is the author's,
    also where its package was installed to be edited (`pip install -e`).
    """
    below = tuple(f"{root.rstrip('/')}/" for root in roots)
    return tuple(name for name, origin in origins if origin is not None and origin.startswith(below))


def to_import(preload: str, reported: Collection[str] | None, agent: str) -> tuple[str, ...]:
    """What a second stage for an agent is to import; empty: it needs none.

    `reported`: what its host has imported; None: it did not say. `agent`: its path; of one in a package, that
    package is the author's.
    """
    named = chosen(preload)
    if named is not None:
        return named
    target = agent.partition(":")[0]
    own = None if "/" in target or target.endswith(".py") else target.partition(".")[0]
    found = tuple(name for name in reported or () if name.partition(".")[0] != own)
    return found if len(found) >= WORTH_MODULES else ()


def hidden(names: Collection[str], packages: Iterable[str]) -> list[str]:
    """Those of `names`, of files and directories of the author's, that a preloaded package would hide.

    Another copy of agentmgr, as in a clone of it, is no file of an author's.
    """
    return sorted({*packages}.intersection(names) - {"agentmgr"})


@frozen
class Kept:
    """A second stage, as far as the choice goes which one has to make room."""

    uses: int  #: starts that it has served
    used_at: float  #: the last of them, on any clock


T = TypeVar("T")


def makes_room(kept: Collection[tuple[T, Kept]], *, most: int, starts: int) -> tuple[bool, T | None]:
    """Whether there may be one more, and which one has to go for it: the least used, of these the one that is
    idle for longest.

    `starts`: how often the service that wants it was started. At its first start it only fills free room: it
    may never be started again, and a hundred services at a boot would all import and take it from each other.
    """
    if len(kept) < most:
        return True, None
    if most == 0 or starts < 2:
        return False, None
    goes, its = min(kept, key=lambda item: (item[1].uses, item[1].used_at))
    return (True, goes) if its.uses < starts else (False, None)
