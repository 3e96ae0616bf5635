"""Lines from whoever types, or from a pipe; waiting for one can be given up at any moment."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import trio

from ..visible import visible
from .out import on_terminal, say

_CHUNK_BYTES = 64 * 1024
_LONGEST_PROMPT = 4096  #: in characters; it is a word of a command
_EDITOR = Path(__file__).with_name("line_editor.py")


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
        self._edits = self.interactive and on_terminal()

    async def read(self, prompt: str, *, remember: bool = True) -> str | None:
        """The next line, without its end; None at the end of the input. A prompt is for terminals only.

        One that is given up loses no line that was read, and ends the line of its prompt. On a terminal it is
        typed with readline, which has the lines that it should `remember`.
        """
        edits = self._edits and len(prompt) <= _LONGEST_PROMPT and b"\n" not in self._rest
        if edits and not self._is_typed_ahead():
            if not await self._edit(prompt, remember):
                return None
        elif self.interactive:
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

    def _is_typed_ahead(self) -> bool:
        """Whether there is a line, or the end of the input, from before the prompt."""
        return bool(select.select([self._fd], [], [], 0)[0])

    async def _edit(self, prompt: str, remember: bool) -> bool:
        """Reads a line in a process of its own; False at the end of the input.

        Where Python has no readline nothing is read, and lines are typed without it from now on.
        """
        modes = termios.tcgetattr(self._fd)
        reading, writing = os.pipe()
        try:
            words = (visible(prompt), _history() if remember else "", str(writing))
            command = [sys.executable, "-IS", str(_EDITOR), *words]
            editor = subprocess.Popen(command, pass_fds=(writing,))  # noqa: ASYNC220  # a millisecond
        finally:
            os.close(writing)
        said = b""
        async with trio.lowlevel.FdStream(reading) as answer:
            try:
                async for piece in answer:
                    said += piece
                code = editor.wait()  # it has closed its end of the pipe: it ends
            except trio.Cancelled:
                say(flush=True)
                raise
            finally:
                editor.kill()
                editor.wait()
                termios.tcsetattr(self._fd, termios.TCSADRAIN, modes)
                self._rest += said
        if code != 0:
            self._edits = False
            say(prompt, end="", flush=True)
        return bool(said) or not self._edits

    def forget_unfinished(self) -> None:
        """Of the line that was being typed: it was for a prompt that is gone."""
        if self.interactive:
            termios.tcflush(self._fd, termios.TCIFLUSH)


def _history() -> str:
    """The file of what was said at this user's prompts, which only they may read; "" where none can be."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    file = Path(state, "agentmgr", "chat_history")
    with suppress(OSError, RuntimeError):  # RuntimeError: no home
        file = file.expanduser()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return str(file)
    return ""
