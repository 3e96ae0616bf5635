"""Processes of ours that outlive the one that starts them: a manager in the background, a worker."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from typing import IO

from .. import bootstrap


def start(
    module: str,
    *arguments: str,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    inherited: Iterable[int],
) -> subprocess.Popen[bytes]:
    """Runs a module of ours in its own session, out of reach of a terminal's Ctrl-C. Raises OSError."""
    return subprocess.Popen(
        [*bootstrap.words(module), *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=tuple(inherited),
        start_new_session=True,
        # An agent may have started it: without the agent's token, it does not end with that agent.
        env=bootstrap.environment(
            {name: value for name, value in os.environ.items() if not name.startswith("AGENTMGR_INSTANCE_")}
        ),
    )


def disown(process: subprocess.Popen[bytes]) -> None:
    """Keeps Popen from warning that the process still runs when nothing here waits for it any more."""
    process.returncode = 0
