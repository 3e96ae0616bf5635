"""What supervising processes needs of the system: tried before anything is started; and a thread, or none."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

import trio

from ..errors import ManagerError
from . import procfs

_REFUSED = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL)


def check() -> None:
    """Raises `ManagerError` that says what is missing."""
    if (missing := _missing()) is not None:
        raise ManagerError(
            f"agentmgr cannot look after processes here: {missing}. It needs Linux 5.4 or newer with /proc "
            "mounted; in a container, a seccomp profile that allows pidfd_open"
        )


def _missing() -> str | None:
    if sys.platform != "linux":
        return f"this is {sys.platform}"
    if not hasattr(os, "pidfd_open") or not hasattr(select, "epoll"):
        return f"{sys.executable} was built without pidfd_open or epoll"
    try:
        procfs.boot_id()
        if procfs.stat(os.getpid()) is None:
            return "/proc does not show this process"
    except OSError as error:
        return f"/proc is not usable ({error.filename}: {error.strerror})"
    call = "pidfd_open"
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            call = "pidfd_send_signal"
            signal.pidfd_send_signal(pidfd, 0)
            call = "waitid(P_PIDFD)"
            with suppress(ChildProcessError):  # expected: this process is no child of its own
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        finally:
            os.close(pidfd)
    except OSError as error:
        if error.errno in _REFUSED:  # and not a shortage of descriptors, which passes
            return f"the system refuses {call} ({error.strerror})"
    return None


Args = TypeVarTuple("Args")
T = TypeVar("T")


async def in_thread(work: Callable[[*Args], T], *args: *Args, limiter: trio.CapacityLimiter) -> T:
    """Runs it in a thread; without one to be had, here, which blocks the loop for as long as the work takes.

    To end an instance must not fail for want of a thread: it may be that instance that has taken them all.
    """
    try:
        return await trio.to_thread.run_sync(work, *args, limiter=limiter)
    except RuntimeError:  # "can't start new thread"
        return work(*args)
