"""The guarded accept loop: nothing that a client does, and nothing that a handler raises, ends it."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing

import trio

from .wire import Wire, tune

logger = logging.getLogger("agentmgr.gateway")

Handler = Callable[[Wire, tuple[str, int]], Awaitable[None]]

_BACKOFF_S = 0.1
_ACCEPTS = 32  # in a row, before other tasks get their turn
# Out of descriptors or memory: accepting again at once would spin, because the client is still there.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CLOSED = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


async def accept_forever(listener: trio.SocketListener, handler: Handler, nursery: trio.Nursery) -> None:
    """Runs `handler(wire, (host, port))` in `nursery` for each client, until cancelled.

    The handler's wire is closed when it returns or raises. Exceptions are logged and go no further.
    """
    # A duplicate, because accepting several clients for one wait is not something trio's listener does.
    with socket.socket(fileno=os.dup(listener.socket.fileno())) as sock:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            tune(sock)
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(_ACCEPTS):
                try:
                    client, address = sock.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _CLOSED:
                        raise
                    if error.errno in _EXHAUSTED:
                        logger.warning("cannot accept a client: %s", error.strerror)
                        await trio.sleep(_BACKOFF_S)
                    break  # else: that client has left already (ECONNABORTED and the like)
                nursery.start_soon(_guarded, handler, Wire(client), address)


async def _guarded(handler: Handler, wire: Wire, address: tuple[str, int]) -> None:
    with closing(wire):
        try:
            await handler(wire, (address[0], address[1]))
        except* Exception:  # the boundary: a fault in one session must not reach the others
            logger.exception("a session ended with an error of the gateway's own")
