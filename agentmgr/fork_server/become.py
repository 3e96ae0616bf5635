"""What a forked process does to be as one that was spawned: descriptors, directory, environment, words."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from .. import bootstrap
from ..process.handover import FIRST_FD, MOST
from . import in_proc


def out_of_the_way(start: socket.socket) -> socket.socket:
    """The same socket, with a number above those that the child inherits."""
    with start:
        return socket.socket(fileno=fcntl.fcntl(start, fcntl.F_DUPFD_CLOEXEC, FIRST_FD + MOST))


AGENT, FORK_SERVER = "agentmgr.agent", "agentmgr.fork_server"


def become(spec: dict[str, Any], descriptors: Sequence[int], start: socket.socket) -> str:
    """Returns which it is to be, an `AGENT` or a `FORK_SERVER`.

    `spec`: `argv`, as for a spawn; `environment`; `cwd`, or None.

    `descriptors`: the manager's directory, the log, and those to inherit, which get the numbers from
    `FIRST_FD` on. `start`, which is out of their way, stays open; all others are closed.
    Raises OSError; with the directory as its `filename`, if that is the reason.
    """
    os.fchdir(descriptors[0])
    if spec["cwd"] is not None:
        os.chdir(spec["cwd"])
    _take(descriptors[1], descriptors[2:], start)
    argv, environment = spec["argv"], spec["environment"]
    in_proc.show(argv, environment)
    sys.orig_argv[:] = argv
    # PYTHON … bootstrap.py MODULE …
    module = AGENT if AGENT in argv else FORK_SERVER
    at = argv.index(module)
    sys.argv[:] = [argv[at - 1], *argv[at + 1 :]]
    os.environ.clear()
    os.environ.update(environment)
    bootstrap.search_python_path()
    time.tzset()
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]  # a fork leaves it as it was
    return module


def _take(output: int, inherited: Sequence[int], start: socket.socket) -> None:
    above = FIRST_FD + len(inherited)
    # Out of the way first: a number may be wanted for another one.
    output, *spare = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in (output, *inherited))
    for number, descriptor in ((1, output), (2, output), *enumerate(spare, FIRST_FD)):
        os.dup2(descriptor, number)
    os.closerange(above, start.fileno())
    os.closerange(start.fileno() + 1, 2**20)
