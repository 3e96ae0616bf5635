"""The guard process: ends commands when their manager is gone (`guard` starts it).

It is run as a file and imports a few light modules of the standard library only, so that it costs little
memory. It reads on its standard input which tokens to watch: `+TOKEN GRACE_S`, and `-TOKEN` once all
processes with that token have ended. The end of the input means that the manager is dead.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

_LOOK_EVERY_S = 0.05


def main() -> None:
    watched: dict[str, tuple[float, signal.Signals]] = {}
    for line in sys.stdin:
        token, *how = line[1:].split()
        if line[0] == "+":
            watched[token] = float(how[0]), signal.Signals[how[1]]
        else:
            watched.pop(token, None)
    begin, signalled = time.monotonic(), set[int]()
    while found := _bearers(watched):
        for pid, token in found.items():
            grace_s, stop_signal = watched[token]
            if time.monotonic() - begin >= grace_s:
                _signal(pid, token, signal.SIGKILL)
            elif pid not in signalled:
                signalled.add(pid)
                _signal(pid, token, stop_signal, signal.SIGCONT)
        time.sleep(_LOOK_EVERY_S)


def _bearers(watched: dict[str, tuple[float, signal.Signals]]) -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc") if watched else ():
        if name.isdecimal() and (token := _token(int(name))) in watched:
            found[int(name)] = token
    return found


def _token(pid: int) -> str:
    """Empty if it has none, or is dead."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return ""
    name = b"AGENTMGR_INSTANCE_TOKEN="
    return next((v[len(name) :].decode(errors="replace") for v in variables if v.startswith(name)), "")


def _signal(pid: int, token: str, *numbers: signal.Signals) -> None:
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if _token(pid) == token:  # with the pidfd open, the pid cannot pass to another process
                for number in numbers:
                    signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


if __name__ == "__main__":
    main()
