"""The guard: one process that ends the commands with `on_manager_death = "die"` when the manager is gone.

An agent's host watches its lifeline itself; a command watches nothing, so the guard does it for all of them.
It knows a command by its token, not by a pid: it gets the token before the process exists, so there is no
moment at which a command runs unwatched.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import trio

log = logging.getLogger("agentmgr.supervisor")

_SCRIPT = Path(__file__).with_name("guard_main.py")
_PAUSE_S = 0.2  #: before another one is started


class Guard:
    """The manager's side. Starts the guard process with the first command to watch."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1  # to the process, while there is one
        self._started = trio.Event()
        self._watched: dict[str, str] = {}  # how to end it, by token

    def watch(self, token: str, grace_s: float, stop_signal: str) -> None:
        """Has the guard end all processes with this token when this process dies. Raises OSError."""
        self._watched[token] = f"{grace_s} {stop_signal}"
        try:
            if self._process is None:
                self._start()
            else:
                self._send(f"+{token} {self._watched[token]}\n".encode())
        except OSError:
            del self._watched[token]
            raise

    def forget(self, token: str) -> None:
        """Stops watching the token: all processes with it have ended."""
        del self._watched[token]
        self._send(f"-{token}\n".encode())

    async def keep(self) -> None:
        """Until cancelled: starts a new guard process when the present one is killed."""
        while True:
            await self._started.wait()
            assert self._process is not None
            pidfd = os.pidfd_open(self._process.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
            log.warning("guard process killed (pid %d); starting a new one", self._process.pid)
            self._drop()
            while self._watched and self._process is None:
                await trio.sleep(_PAUSE_S)
                if self._process is None:  # else `watch` has started one meanwhile
                    with suppress(OSError):  # the system cannot start another process now
                        self._start()

    def close(self) -> None:
        if self._process is not None and not self._watched:
            self._process.kill()  # else it has to outlive this manager
            self._drop()

    def _start(self) -> None:
        lines = "".join(f"+{token} {how}\n" for token, how in self._watched.items()).encode()
        reader, self._pipe = os.pipe()
        try:
            # Write before the process exists: this manager may be killed at any moment. A pipe holds a
            # thousand tokens; the rest waits until the process reads.
            os.set_blocking(self._pipe, False)
            written = os.write(self._pipe, lines)
            os.set_blocking(self._pipe, True)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _SCRIPT],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,  # a terminal's Ctrl-C must not reach it
            )
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(reader)
        self._started.set()
        if rest := lines[written:]:
            self._send(rest)

    def _send(self, lines: bytes) -> None:
        if self._process is not None:
            with suppress(BrokenPipeError):  # killed: its successor gets all tokens at its start
                os.write(self._pipe, lines)

    def _drop(self) -> None:
        process, self._process, self._started = self._process, None, trio.Event()
        assert process is not None
        os.close(self._pipe)
        process.wait()
