"""Which modules of installed packages this host has imported: a manager has them imported ahead of its next
start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache

from ..core.preloading import installed

_hosts_own: frozenset[str] = frozenset()


def note_own() -> None:
    """What is imported by now is the host's, and in each of its fork servers already."""
    global _hosts_own
    _hosts_own = frozenset(sys.modules)


def modules() -> list[str]:
    """Those that the author's code brought, in the order in which they began to be imported."""
    return list(installed(_origins(), roots()))


@cache
def roots() -> frozenset[str]:
    """The directories of the standard library and of installed packages.

    A fork server finds them for its children, which would each import what that takes.
    """
    import site
    import sysconfig

    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found.update(site.getsitepackages())
    found.add(os.path.dirname(os.path.dirname(__file__)))  # our own, that the agent needs, in a clone too
    if site.ENABLE_USER_SITE:
        found.add(site.getusersitepackages())
    return frozenset(found)


def _origins() -> Iterator[tuple[str, str | None]]:
    for name, module in list(sys.modules.items()):
        if name not in _hosts_own:
            try:  # not by `getattr`: modules that are imported when they are first used would be so now
                spec = object.__getattribute__(module, "__dict__").get("__spec__")
            except AttributeError:
                continue
            # An alias, as `six` makes them, cannot be imported by its name.
            if getattr(spec, "name", None) == name:
                yield name, getattr(spec, "origin", None)
