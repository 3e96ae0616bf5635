"""A short command of the user's, run to its end: what it says is bounded, and it has its time."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import trio

SAID_CHARS = 200
_KEPT_BYTES = 4 * SAID_CHARS  # of UTF-8
_PIPE_BYTES = 2**20  #: the most that a pipe holds
_OF_A_SHELL = frozenset({"|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>&1", "&>"})


def misread(command: str) -> str | None:
    """What is wrong with a command that was written for a shell; None where nothing is."""
    words = [word for word in shlex.split(command) if word in _OF_A_SHELL]
    return f"no shell reads it, and {words[0]!r} is for one: `sh -c '…'`" if words else None


async def run_command(
    command: str,
    *,
    stdin: bytes = b"",
    cwd: str | None,
    environment: Mapping[str, str],
    **options: Any,
) -> tuple[int, str]:
    """Its exit code (negative: the signal that ended it) and the end of its output. `options`: of `Popen`.

    It runs in a session of its own, which is killed when this is cancelled. What it leaves running in the
    background when it ends is not waited for. Raises OSError where it cannot be executed.
    """
    process = await trio.lowlevel.open_process(
        shlex.split(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=dict(environment),
        start_new_session=True,
        **options,
    )
    to, out, said = process.stdin, process.stdout, b""
    assert isinstance(to, trio.lowlevel.FdStream)
    assert isinstance(out, trio.lowlevel.FdStream)

    async def feed() -> None:
        with suppress(trio.BrokenResourceError):  # it does not read to the end
            await to.send_all(stdin)
        to.close()

    async def listen() -> None:
        nonlocal said
        async for piece in out:
            said = (said + piece)[-_KEPT_BYTES:]

    try:
        with suppress(BrokenPipeError):  # what fits is there also for one that it starts before it ends
            stdin = stdin[os.write(to.fileno(), stdin) :]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            nursery.start_soon(listen)
            await process.wait()
            # Not their ends, which a process in the background may keep open.
            nursery.cancel_scope.cancel()
        with suppress(BlockingIOError):
            said = (said + os.read(out.fileno(), _PIPE_BYTES))[-_KEPT_BYTES:]
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
        to.close()
        out.close()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace").strip()[-SAID_CHARS:]
