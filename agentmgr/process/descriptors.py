"""How many files may be open at once: as many as this process can get, and the usual number in its children.

The usual soft limit of 1024 is for programs that use select(), which breaks above it; a gateway has two
sockets for each connection. See systemd.exec(5) on LimitNOFILE.
"""

from __future__ import annotations

import logging
import resource
from contextlib import suppress

logger = logging.getLogger("agentmgr")

_MOST = 2**20  # what Linux allows by default (fs.nr_open); "unlimited" is refused where it means more

_given: tuple[int, int] | None = None  # what this process began with, once it has raised it


def raise_limit() -> None:
    """Raises this process's soft limit to its hard one."""
    global _given
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:  # a sandbox may forbid it, and then the old one has to do
        logger.warning("the limit of open files stays at %d: %s", soft, error)
        return
    _given = soft, hard


def give_back(pid: int) -> None:
    """Gives a child of ours the limit that this process began with."""
    if _given is not None:
        with suppress(OSError):  # it has ended already, or has another user's rights: it keeps the higher one
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _given)
