"""The accept loop of a listener that hundreds of machines dial at once, as after all links were cut."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from ..core.repeats import Repeats

logger = logging.getLogger(__name__)

_ACCEPTS = 64  #: in a row, before other tasks run
_MANY = 10  #: closed at once: no mere look at the port
_BACKOFF_S = 0.1
_CLOSED = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
_SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


async def accept_forever(
    listener: trio.SocketListener,
    serve: Callable[[trio.SocketStream], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    """Runs `serve(stream)` in `nursery` for each connection, until cancelled; closes the listener.

    One whose peer has closed it already is closed without any work: it gave up while it waited. Trio's own
    loop accepts one for each turn of the event loop; where a turn takes a second, those who dial give up, and
    dial anew, faster than that, and none would ever get through.
    """
    repeats = Repeats()
    async with listener:
        with socket.socket(fileno=os.dup(listener.socket.fileno())) as sock:
            sock.setblocking(False)
            while True:
                await trio.lowlevel.wait_readable(sock)
                gone = 0
                for _ in range(_ACCEPTS):
                    try:
                        peer, _ = sock.accept()
                    except BlockingIOError:
                        break
                    except OSError as error:
                        if error.errno in _CLOSED:
                            raise
                        if error.errno in _SHORTAGE:  # at once again would spin: the peer is still there
                            logger.error("cannot accept a machine: %s", error.strerror)
                            await trio.sleep(_BACKOFF_S)
                        break  # else: that peer has left (ECONNABORTED and the like)
                    if has_gone(peer):
                        peer.close()
                        gone += 1
                    else:
                        stream = trio.SocketStream(trio.socket.from_stdlib_socket(peer))
                        nursery.start_soon(serve, stream)
                if gone >= _MANY and repeats.is_new("gone", trio.current_time()):
                    logger.warning(
                        "%d connections were closed by machines that had waited for this manager in vain: it "
                        "has too little of a core, or stood still",
                        gone,
                    )


def has_gone(sock: socket.socket) -> bool:
    """Whether the peer has closed the connection, also where it has sent something before."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    with suppress(OSError):
        return bool(poll.poll(0))
    return True
