"""Checks that ask nothing of a service's socket: what it has written, what another program says of it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import trio
from attrs import frozen

from ..core.health import ProbeResult
from ..models.fields import searcher
from ..process.command import run_command
from .accounts import Identity

_LOOK_EVERY_S = 0.1
_PIECE_BYTES = 64 * 1024
_LINES_AT_ONCE = 500


async def wait_for_line(log: Path, since: int, pattern: str) -> None:
    """Returns when a line that was written to the log after the position `since` matches."""
    matches, position, rest = searcher(pattern), since, b""
    while True:
        position, piece = _read(log, position)
        *lines, rest = (rest + piece).split(b"\n")
        for number, line in enumerate((*lines, rest), 1):
            if matches(line.decode(errors="replace")):
                return
            if number % _LINES_AT_ONCE == 0:  # a flood of them must not hold up the manager
                await trio.lowlevel.checkpoint()
        rest = rest[-_PIECE_BYTES:]
        await trio.sleep(0 if piece else _LOOK_EVERY_S)


def _read(log: Path, position: int) -> tuple[int, bytes]:
    """What follows that position, and the one after it. The file may have been rotated."""
    try:
        with open(log, "rb") as file:
            if os.fstat(file.fileno()).st_size < position:
                position = 0
            file.seek(position)
            piece = file.read(_PIECE_BYTES)
    except OSError:
        return position, b""
    return position + len(piece), piece


@frozen
class CommandCheck:
    command: str
    cwd: str | None
    environment: Mapping[str, str]
    identity: Identity  #: as whom it runs

    async def __call__(self, timeout_s: float) -> ProbeResult:
        """Never raises; a failure is a result with its reason."""
        words, begin = shlex.split(self.command), trio.current_time()
        try:
            with trio.move_on_after(timeout_s):
                code, said = await run_command(
                    self.command, cwd=self.cwd, environment=self.environment, **self.identity
                )
                if code == 0:
                    return ProbeResult(True, latency_s=trio.current_time() - begin)
                how = f"{words[0]} ended with {code}"
                return ProbeResult(False, reason=f"{how}: {said}" if said else how)
        except OSError as error:
            return ProbeResult(False, reason=f"cannot execute {words[0]!r}: {error.strerror or error}")
        return ProbeResult(False, reason=f"{words[0]} gave no answer for {timeout_s:g} s")
