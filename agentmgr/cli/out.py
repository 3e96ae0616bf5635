"""The one writer to the terminal: no other module of the command line prints (ruff checks that).

What is written may hold words of clients, agents and other servers, so `visible` passes over each part of it.
Only a `Shown` is written as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, TextIO

import trio

from ..codec import to_plain
from ..visible import ProgramOutput, json_text, visible

_STYLES = {
    "bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36,
}  # fmt: skip

RESET = "\x1b[0m"
CLEAR_SCREEN = "\x1b[H\x1b[2J\x1b[3J"

_one_at_a_time = trio.CapacityLimiter(1)  # threads of `say_as_it_is_read`


class Shown(str):
    """Text that is safe on a terminal as it stands. Only this module and `visible` make it."""

    __slots__ = ()


def prepare() -> None:
    """What the terminal's encoding lacks is written as an escape too, where Python would give up."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _open_what_is_closed() -> None:
    """After the caller's `2>&-`: the next file to be opened would get the number of that stream, and with it
    what this process and those that it starts have to say.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115  # for good
            setattr(sys, name, stream)


def say(*parts: str, lines: bool = False, end: str = "\n", error: bool = False, flush: bool = False) -> None:
    """Writes the parts in a row, to stdout, or with `error` to stderr.

    A newline in a part is shown as `\\n`, so that no value begins a line of its own, unless it has `lines`.
    """
    stream = sys.stderr if error else sys.stdout
    stream.write("".join(p if isinstance(p, Shown) else visible(p, lines=lines) for p in parts) + end)
    if flush:
        stream.flush()


async def say_as_it_is_read(lines: Sequence[Sequence[Shown]]) -> None:
    """Writes lines to stdout in a thread, and waits for that.

    A reader may stop reading, as a terminal does after Ctrl-S: then gateway and API in this process go on.
    The thread holds no lock of `sys.stdout`, so that the process can end while the thread still waits.
    """
    text = "".join("".join(parts) + "\n" for parts in lines)
    stream = sys.stdout
    stream.flush()
    data = text.encode(stream.encoding, "backslashreplace")
    await trio.to_thread.run_sync(
        _write, stream.fileno(), data, abandon_on_cancel=True, limiter=_one_at_a_time
    )


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def note(message: str) -> None:
    """A line on stderr, beside the answer."""
    say(message, error=True, flush=True)


def complain(message: str) -> None:
    """An error. Its first line is the reason; what follows, such as an agent's last output, is kept."""
    say(f"Error: {message}", lines=True, error=True)


def show_traceback(error: BaseException) -> None:
    """For --debug."""
    import traceback  # 4 ms that other commands do not need

    say(*traceback.format_exception(error), lines=True, end="", error=True)


def say_json(value: Any, *, indent: int | None = 2, flush: bool = False) -> None:
    """JSON of plain data or of our values."""
    say(Shown(json_text(to_plain(value), indent=indent)), flush=flush)


@contextmanager
def program_output() -> Iterator[Callable[[bytes], None]]:
    """Writes what a service wrote, piece by piece: to a terminal as `ProgramOutput`, else as it is."""
    if not on_terminal():

        def copy(piece: bytes) -> None:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()

        yield copy
        return
    output = ProgramOutput()
    try:
        yield lambda piece: say(Shown(output.feed(piece)), end="", flush=True)
    finally:
        say(Shown(output.end() + RESET), end="", flush=True)  # a colour that was begun ends with the output


def program_line(line: str) -> Shown:
    """One line of `ProgramOutput`; its colours end with it."""
    return Shown(f"{line}{RESET}" if "\x1b" in line else line)


def painted(text: str, style: str, *, lines: bool = False) -> Shown:
    """In that style, where stdout shows styles."""
    text = visible(text, lines=lines)
    if not colourful(sys.stdout):
        return Shown(text)
    return Shown(f"\x1b[{_STYLES[style]}m{text}{RESET}")


def clear_screen() -> None:
    if on_terminal():
        say(Shown(CLEAR_SCREEN), end="")


def flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def on_terminal() -> bool:
    return sys.stdout.isatty()


def colourful(stream: TextIO | None) -> bool:
    """On a terminal, and where the user has nothing against it (https://no-color.org)."""
    return stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")
