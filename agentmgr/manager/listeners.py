"""Binding an address, with the errors a user understands."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

import trio

from ..errors import InvalidRequest, PortNotAvailable

_BACKLOG = 1024  #: connections that wait to be accepted; the kernel caps it (net.core.somaxconn)
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on all addresses of `host`, all on the same port; a free one when `port` is 0.

    Raises `PortNotAvailable`, or `InvalidRequest` when the host is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"port must be from 0 to 65535, not {port}")
    try:
        addresses = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise InvalidRequest(f"cannot listen on {host!r}: {error.strerror}") from None
    # Whatever ends this, cancellation in `bind` too, closes the sockets that nobody has been given.
    with ExitStack() as unclaimed:
        listeners: list[trio.SocketListener] = []
        failure: OSError | None = None
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                sock = trio.socket.socket(family, kind, protocol)
                unclaimed.callback(sock.close)
                # "localhost" is 127.0.0.1 and ::1; the second must get the port that the first was given.
                await _listen(sock, (address[0], port, *address[2:]))
            except OSError as error:
                failure = error
                if error.errno in _NO_SUCH_ADDRESS:
                    continue  # a machine without IPv6 has no ::1, and the rest will do
                break
            listeners.append(trio.SocketListener(sock))
            port = port or sock.getsockname()[1]
        if failure is None or (listeners and failure.errno in _NO_SUCH_ADDRESS):
            unclaimed.pop_all()
            return listeners
    if failure.errno == errno.EADDRINUSE:
        raise PortNotAvailable(
            f"port {port} on {host} is not available; stop what holds it, or choose another port"
        )
    raise InvalidRequest(f"cannot listen on {host}:{port}: {failure.strerror}")


async def _listen(sock: trio.socket.SocketType, address: tuple[str | int, ...]) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    await sock.bind(address)
    sock.listen(_BACKLOG)
