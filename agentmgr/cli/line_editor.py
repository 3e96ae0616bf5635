"""Reads a line at a terminal with readline for `agentmgr chat`: `line_editor.py PROMPT HISTORY FD`.

It writes the line to the descriptor; nothing at the end of the input. In a process of its own, because
readline can be given up in no other way: whoever started it kills it, and puts the terminal's modes back.
It imports nothing of ours: it starts in 20 ms, at each prompt.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

try:
    import readline
except ImportError:
    sys.exit(1)

_LINES_KEPT = 1000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    prompt, history, out = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which puts the terminal's modes back
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # if the command is killed
    readline.set_auto_history(False)
    with suppress(OSError):
        readline.read_history_file(history)
    try:
        line = input(prompt)
    except EOFError:
        os.write(1, b"\n")
        return
    with suppress(OSError):
        if history and line.strip():
            readline.add_history(line)
            readline.set_history_length(_LINES_KEPT)
            os.umask(0o077)  # what a person says is theirs
            readline.write_history_file(history)
    with open(int(out), "w", encoding="utf-8", errors="surrogateescape") as answer:
        answer.write(f"{line}\n")


if __name__ == "__main__":
    main()
