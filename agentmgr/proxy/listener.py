"""The guarded accept loop: nothing that a client does, and nothing that a handler raises, ends it."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from typing import Any, Protocol

import trio

from ..websocket.refusal import Refusal, RefusalCode
from ..websocket.sockets import OUR_OWN_SHORTAGE, Wire, tune

logger = logging.getLogger("agentmgr.gateway")


class SocketListener(Protocol):
    """A `trio.SocketListener`, or whatever else has a listening socket."""

    @property
    def socket(self) -> trio.socket.SocketType: ...


Handler = Callable[[Wire, tuple[str, int]], Awaitable[None]]

_BACKOFF_S = 0.1
_ACCEPTS = 32  # in a row, before other tasks run
_CLOSED = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
_FULL = Refusal(503, RefusalCode.TOO_MANY_CONNECTIONS, "the gateway is full", (("Retry-After", "2"),))


class ConnectionLimit:
    """The most connections at once, handshakes included; one above it is refused without a task of its own.

    Never so many that no reserve of file descriptors is left: the rest of the process (its API, its database,
    its children) has to stay well under a flood of clients.
    """

    _RESERVE = 128
    _RESERVED_PART = 1 / 8  # where there are many: instances and API clients come with connections
    _DESCRIPTORS = 2  # one descriptor for each leg

    def __init__(self, limit: int, *, refused: Callable[[str], None]) -> None:
        """`refused` is called with the code of each refusal."""
        self._refused = refused
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        reserve = max(self._RESERVE, int(soft * self._RESERVED_PART))
        possible = max(16, (soft - reserve) // self._DESCRIPTORS)
        self.limit = min(limit, possible) if limit else possible
        self._taken = 0

    def take(self) -> bool:
        """Counts one more connection; False at the limit."""
        if self._taken >= self.limit:
            self._refused(_FULL.code)
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        self._taken -= 1


async def accept_forever(
    listener: SocketListener,
    handler: Handler,
    nursery: trio.Nursery,
    limit: ConnectionLimit,
    *,
    refusal: bytes = _FULL.response,
) -> None:
    """Runs `handler(wire, (host, port))` in `nursery` for each client, until cancelled.

    The handler's wire is closed when it returns or raises. Exceptions are logged and go no further. Above the
    limit a client gets the `refusal`.
    """
    # A duplicate, because accepting several clients for one wait is not something trio's listener does.
    with socket.socket(fileno=os.dup(listener.socket.fileno())) as sock:
        sock.setblocking(False)
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
                    if error.errno in OUR_OWN_SHORTAGE:
                        # Accepting again at once would spin, because the client is still there.
                        logger.warning(
                            "cannot accept a client: %s; trying again in %g s", error.strerror, _BACKOFF_S
                        )
                        await trio.sleep(_BACKOFF_S)
                    break  # else: that client has left already (ECONNABORTED and the like)
                let_in(Wire(client), _peer(address), handler, nursery, limit, refusal=refusal)


def let_in(
    wire: Wire,
    address: tuple[str, int],
    handler: Handler,
    nursery: trio.Nursery,
    limit: ConnectionLimit,
    *,
    refusal: bytes = _FULL.response,
) -> None:
    """Runs `handler(wire, address)` in `nursery`, guarded as above; above the limit the client is refused."""
    if limit.take():
        nursery.start_soon(_guarded, handler, wire, address, limit)
    else:
        _turn_away(wire, refusal)


def _peer(address: Any) -> tuple[str, int]:
    """A client on a unix socket has no address, and is on this machine for certain."""
    return (address[0], address[1]) if isinstance(address, tuple) else ("127.0.0.1", 0)


async def _guarded(handler: Handler, wire: Wire, address: tuple[str, int], limit: ConnectionLimit) -> None:
    try:
        with closing(wire):
            await handler(wire, address)
    except* Exception:  # the boundary: a fault in one connection must not reach the others
        logger.exception("internal error in the gateway: one connection closed")
    finally:
        limit.give_back()


def _turn_away(wire: Wire, refusal: bytes) -> None:
    with closing(wire), suppress(OSError):
        wire.sock.send(refusal)
