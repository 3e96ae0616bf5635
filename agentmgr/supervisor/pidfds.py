"""How a process has ended that is not our child: from Linux 6.15 on, a pidfd says it."""

from __future__ import annotations

import fcntl
import os
import select
import struct

import trio

from ..core.restart import Exit

# From <linux/pidfd.h>: PIDFD_GET_INFO is _IOWR(0xFF, 11, struct pidfd_info), of 64 bytes. It begins with the
# mask of what is asked, and ends with the status as of wait(2).
_GET_INFO = 0xC040FF0B
_EXIT = 1 << 3
_SIZE = 64

_REAPED_WITHIN_S = 1.0  #: by init, or by whatever has adopted it


async def foreign_exit(pidfd: int) -> Exit:
    """Of a process that has ended: waits until its parent has reaped it. `Exit()` where that is not known."""
    try:
        if _known(pidfd) is None:
            with select.epoll() as reaped, trio.move_on_after(_REAPED_WITHIN_S):
                reaped.register(pidfd, 0)  # a pidfd hangs up when its process is reaped
                await trio.lowlevel.wait_readable(reaped.fileno())
    except OSError:  # an older kernel
        pass
    return known_exit(pidfd)


def known_exit(pidfd: int) -> Exit:
    """Of a process that was reaped by another one."""
    try:
        return _known(pidfd) or Exit()
    except OSError:
        return Exit()


def _known(pidfd: int) -> Exit | None:
    """None: it is not reaped yet. Raises OSError on a kernel that does not say."""
    info = bytearray(struct.pack("Q", _EXIT).ljust(_SIZE, b"\0"))
    fcntl.ioctl(pidfd, _GET_INFO, info)
    if not struct.unpack_from("Q", info)[0] & _EXIT:
        return None
    (status,) = struct.unpack_from("i", info, _SIZE - 4)
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status))
    return Exit(code=os.waitstatus_to_exitcode(status))
