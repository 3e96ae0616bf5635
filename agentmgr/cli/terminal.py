"""Lines from whoever types, or from a pipe; waiting for one can be given up at any moment."""

from __future__ import annotations

import os
import sys
import termios

import trio

from .out import say

_CHUNK_BYTES = 64 * 1024


class InputLines:
    """The lines of the standard input.

    They are read from the descriptor: `input()` in a thread could not be given up, and would swallow the line
    that is typed after it.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._rest = b""
        self._ended = False
        self.interactive = sys.stdin.isatty()

    async def read(self, prompt: str) -> str | None:
        """The next line, without its end; None at the end of the input. A prompt is for terminals only.

        One that is given up loses nothing that was read, and ends the line of its prompt.
        """
        if self.interactive:
            say(prompt, end="", flush=True)
        while b"\n" not in self._rest and not self._ended:
            try:
                await trio.lowlevel.wait_readable(self._fd)
            except PermissionError:  # a file, or /dev/null: epoll does not take what is always ready
                await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                if self.interactive:
                    say(flush=True)
                raise
            piece = os.read(self._fd, _CHUNK_BYTES)
            self._ended = not piece
            self._rest += piece
        if not self._rest:
            self._ended = False  # a terminal can go on after Ctrl-D
            return None
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace").removesuffix("\r")

    def forget_unfinished(self) -> None:
        """Of the line that was being typed: it was for a prompt that is gone."""
        if self.interactive:
            termios.tcflush(self._fd, termios.TCIFLUSH)
