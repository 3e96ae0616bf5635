"""For commands that are to die with their manager: they watch nobody themselves, so one process does for all.

It goes by the token, not by a pid: it is told before the process is there, so there is no moment at which
nobody watches.
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
    """The manager's end of it. The process is started when there is first something to watch."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1  # to the process, while there is one
        self._started = trio.Event()
        self._watched: dict[str, float] = {}

    def watch(self, token: str, grace_s: float) -> None:
        """Whatever bears the token is ended when we die. Raises OSError."""
        self._watched[token] = grace_s
        try:
            if self._process is None:
                self._start()
            else:
                self._send(f"+{token} {grace_s}\n".encode())
        except OSError:
            del self._watched[token]
            raise

    def forget(self, token: str) -> None:
        """All that bears it has ended."""
        del self._watched[token]
        self._send(f"-{token}\n".encode())

    async def keep(self) -> None:
        """Until cancelled: it is replaced when somebody kills it."""
        while True:
            await self._started.wait()
            assert self._process is not None
            process = os.pidfd_open(self._process.pid)
            try:
                await trio.lowlevel.wait_readable(process)
            finally:
                os.close(process)
            log.warning("what watches over services that are to die with this manager was killed")
            self._drop()
            while self._watched and self._process is None:
                await trio.sleep(_PAUSE_S)
                if self._process is None:  # else a new one to watch has come meanwhile, and it with that
                    with suppress(OSError):  # no process to be had just now
                        self._start()

    def close(self) -> None:
        if self._process is not None and not self._watched:
            self._process.kill()  # else it has work to do
            self._drop()

    def _start(self) -> None:
        lines = "".join(f"+{token} {grace_s}\n" for token, grace_s in self._watched.items()).encode()
        reader, self._pipe = os.pipe()
        try:
            # In the pipe before the process is there: we may be killed at any moment. A pipe takes a thousand
            # of them; what it does not take has to wait for its reader.
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
                start_new_session=True,  # what a terminal sends to its foreground is not for this one
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
            with suppress(BrokenPipeError):  # killed: the next one is told of all
                os.write(self._pipe, lines)

    def _drop(self) -> None:
        process, self._process, self._started = self._process, None, trio.Event()
        assert process is not None
        os.close(self._pipe)
        process.wait()
