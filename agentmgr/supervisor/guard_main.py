"""The process that ends what is to die with its manager, when that is gone.

Run as a file, and of the lighter half of the standard library only, so that it costs little; it imports
nothing of this package. It reads on its standard input whom to watch: `+TOKEN GRACE_S`, and `-TOKEN` once all
that bears it has ended. At the end of the input the manager is dead.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

_LOOK_EVERY_S = 0.05


def main() -> None:
    watched: dict[str, float] = {}
    for line in sys.stdin:
        token, _, grace_s = line[1:].strip().partition(" ")
        if line[0] == "+":
            watched[token] = float(grace_s)
        else:
            watched.pop(token, None)
    begin, signalled = time.monotonic(), set[int]()
    while found := _bearers(watched):
        for pid, token in found.items():
            if time.monotonic() - begin >= watched[token]:
                _signal(pid, token, signal.SIGKILL)
            elif pid not in signalled:
                signalled.add(pid)
                _signal(pid, token, signal.SIGTERM, signal.SIGCONT)
        time.sleep(_LOOK_EVERY_S)


def _bearers(watched: dict[str, float]) -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc") if watched else ():
        if name.isdecimal() and (token := _token(int(name))) in watched:
            found[int(name)] = token
    return found


def _token(pid: int) -> str:
    """Empty where it has none, also once it is dead."""
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
            if _token(pid) == token:  # only now is it certain whom the number means
                for number in numbers:
                    signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


if __name__ == "__main__":
    main()
