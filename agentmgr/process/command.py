"""A short command of the user's, run to its end: what it says is bounded, and it has its time."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from ..errors import leaves

SAID_CHARS = 200


async def run_command(
    command: str,
    *,
    stdin: bytes = b"",
    cwd: str | None,
    environment: Mapping[str, str],
    **options: Any,
) -> tuple[int, str]:
    """Its exit code (negative: the signal that ended it) and the end of its output. `options`: of `Popen`.

    It runs in a session of its own, which is killed when this is cancelled. Raises OSError where it cannot be
    executed.
    """
    words, said = shlex.split(command), b""
    run = partial(
        trio.run_process,
        words,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        cwd=cwd,
        env=dict(environment),
        start_new_session=True,
        deliver_cancel=_kill,
        **options,
    )
    try:
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(run)
            assert process.stdout is not None
            async for piece in process.stdout:
                said = (said + piece)[-4 * SAID_CHARS :]
    except* OSError as errors:
        raise next(leaves(errors)) from None
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace").strip()[-SAID_CHARS:]


async def _kill(process: trio.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
