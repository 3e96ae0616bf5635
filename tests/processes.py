"""What tests have started and has to be gone with them, also where they fail."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from agentmgr.supervisor import procfs


def alive(pid: int) -> bool:
    """Whether it runs, or still has descriptors open while it dies."""
    stat = procfs.stat(pid)
    return stat is not None and stat.lives


def working_in(directory: Path) -> list[int]:
    """The living processes, other than this one, whose working directory it is, or one below it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # gone, a zombie, or somebody else's
                if Path(os.readlink(entry / "cwd")).is_relative_to(directory):
                    found.append(int(entry.name))
    return found


def end_all_in(directory: Path) -> None:
    """Kills those, as if at one moment, and waits for those that are our own children."""
    while pids := working_in(directory):
        for pid in pids:  # none has the time to see that another one has died, and to start it again
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def reap() -> None:
    """Children of this process that have ended and that nobody waits for: managers in the background."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
