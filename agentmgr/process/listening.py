"""Binding an address, with the errors a user understands."""

from __future__ import annotations

import errno
import logging
import math
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import trio

from ..errors import InvalidRequest, PortNotAvailable

_BACKLOG = 1024  #: connections that wait to be accepted; the kernel caps it (net.core.somaxconn)
_TRIES = 10  #: to find a port that is free on each of a host's addresses
_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class _OnceAMinute(logging.Filter):
    """One line, without its traceback."""

    _next_at = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + 60.0
        record.exc_info = None
        return True


_once_a_minute = _OnceAMinute()


def log_shortages_rarely() -> None:
    """Trio logs a traceback ten times a second while a process has no descriptor left for the next client.

    Any stranger who can connect can bring that about.
    """
    logging.getLogger("trio.serve_listeners").addFilter(_once_a_minute)


async def open_listeners(host: str, port: int, *, shared: bool = False) -> list[trio.SocketListener]:
    """Listen on all addresses of `host`, all on the same port; a free one when `port` is 0.

    `shared` lets other processes of this user listen there too (SO_REUSEPORT): the kernel spreads clients.
    Raises `PortNotAvailable`, or `InvalidRequest` when the host is not one of this machine.
    """
    with ExitStack() as unclaimed:
        sockets = await bind(host, port, shared=shared)
        for sock in sockets:
            unclaimed.callback(sock.close)
        try:
            for sock in sockets:
                sock.listen(_BACKLOG)
        except OSError as error:  # Linux lets two bind one port before the first listens
            raise _not_ours(host, port, error) from None
        unclaimed.pop_all()
    return [trio.SocketListener(sock) for sock in sockets]


async def bind(host: str, port: int, *, shared: bool = False) -> list[trio.socket.SocketType]:
    """The sockets of `open_listeners` before they listen: they hold the port, and no client comes to them.

    Raises `PortNotAvailable`, `InvalidRequest`.
    """
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"port must be from 0 to 65535, not {port}")
    try:
        addresses = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise InvalidRequest(f"cannot listen on {host!r}: {error.strerror}") from None
    tries = 1 if port else _TRIES
    while True:
        tries -= 1
        try:
            return await _bind_each(addresses, port, shared)
        except OSError as error:
            if not tries or error.errno != errno.EADDRINUSE:
                raise _not_ours(host, port, error) from None


async def _bind_each(addresses: Sequence[_Address], port: int, shared: bool) -> list[trio.socket.SocketType]:
    """Raises `OSError`: also where the port that the kernel chose for the first is taken on the second."""
    # Whatever ends this, cancellation in `bind` too, closes the sockets that were not handed out.
    with ExitStack() as unclaimed:
        sockets: list[trio.socket.SocketType] = []
        missing: OSError | None = None
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                sock = trio.socket.socket(family, kind, protocol)
                unclaimed.callback(sock.close)
                _prepare(sock, shared)
                # "localhost" is 127.0.0.1 and ::1; the second must get the port that the first was given.
                await sock.bind((address[0], port, *address[2:]))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                missing = error  # a machine without IPv6 has no ::1, and the rest will do
                continue
            sockets.append(sock)
            port = port or sock.getsockname()[1]
        if missing is not None and not sockets:
            raise missing
        unclaimed.pop_all()
        return sockets


def _prepare(sock: trio.socket.SocketType, shared: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _not_ours(host: str, port: int, failure: OSError) -> PortNotAvailable | InvalidRequest:
    if failure.errno == errno.EADDRINUSE:
        return PortNotAvailable(
            f"port {port} on {host} is not available; stop what holds it, or choose another with --port (of "
            "`agentmgr daemon`: --proxy-port, --api-port, --cluster-port)"
        )
    return InvalidRequest(f"cannot listen on {host}:{port}: {failure.strerror}")
