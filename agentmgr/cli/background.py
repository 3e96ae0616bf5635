"""Starts a manager in the background, and returns when it is ready."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import trio

from ..errors import ManagerError
from ..process import detached
from ..process.ownership import turn_to_start
from .group import Cli
from .out import note
from .presence import answers

READY = b"ready\n"


async def start_daemon(cli: Cli) -> ExitStack:
    """Starts `agentmgr daemon` in a session of its own, unless one answers when the lock is ours.

    Prints its pid on stderr. Close the returned stack when the command is done with the new manager: until
    then no `agentmgr daemon` of a terminal takes its place. Raises `ManagerError` with the daemon's
    own message if it does not start.
    """
    paths = cli.paths
    with await turn_to_start(paths) as turn:
        if await answers(paths):  # another command was quicker
            return ExitStack()
        said_before = paths.daemon_log.stat().st_size if paths.daemon_log.exists() else 0
        reading, writing = os.pipe()
        async with trio.lowlevel.FdStream(reading) as words_of_it:
            try:
                process = _spawn(cli, writing)
            finally:
                os.close(writing)
            words = b"".join([chunk async for chunk in words_of_it])  # until its last writer closes it
        if words != READY:
            code = await trio.to_thread.run_sync(process.wait)
            if await answers(paths):  # a program that embeds a manager was quicker
                return ExitStack()
            said = words.decode(errors="replace").strip() or _last_line(paths.daemon_log, said_before)
            if code < 0:
                said = f"it was killed by {signal.Signals(-code).name} before it was ready"
            raise ManagerError(f"the manager did not start: {said}; its log is {paths.daemon_log}")
        detached.disown(process)
        note(f"started a manager in the background, pid {process.pid}; its log is {paths.daemon_log}")
        return turn.pop_all()


def _spawn(cli: Cli, ready_fd: int) -> subprocess.Popen[bytes]:
    paths = cli.paths
    with paths.daemon_log.open("ab") as log:
        paths.daemon_log.chmod(0o600)
        return detached.start(
            "agentmgr",
            *("daemon", "--db-path", str(paths.database), "--ready-fd", str(ready_fd)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,  # what it says before it logs, or when it cannot any more
            inherited=[ready_fd],
        )


def _last_line(path: Path, start: int) -> str:
    """The last line behind the offset `start`; before that are the lines of earlier managers."""
    try:
        lines = path.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return "it wrote nothing"
    return lines[-1].strip() if lines else "it wrote nothing"
