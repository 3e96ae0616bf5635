"""Resets signal dispositions that children would inherit, or that would hide how a child has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def _nothing(_number: int, _frame: object) -> None:
    pass


@contextmanager
def children_get_defaults() -> Iterator[None]:
    """Within it, a child starts with default dispositions and no signal blocked, whatever holds for us.

    `nohup`, a shell's `&` and some container runtimes start this process with signals ignored. An ignored
    signal stays ignored over exec, so INT, HUP or CHLD would never reach a child that needs it. A handler
    that does nothing has the same effect here, and exec turns it into the default. SIGCHLD gets its default
    back: while it is ignored, the kernel reaps our children and their exit codes are lost.

    Only the main thread can change dispositions: in another thread this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = [
        number
        for number in signal.valid_signals()
        - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
        if signal.getsignal(number) is signal.SIG_IGN  # Popen itself restores PIPE and XFSZ
    ]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else _nothing)
    blocked = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            if signal.getsignal(number) in (_nothing, signal.SIG_DFL):  # else other code has set one since
                signal.signal(number, signal.SIG_IGN)
