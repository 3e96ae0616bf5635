"""Sockets of the API, bound by us: the mode, the place and the end of each are ours to see to."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio

from ..errors import InvalidRequest, PortNotAvailable

_BACKLOG = 256

STALL_S = 60.0  #: a client that takes no byte for so long is cut


async def bind_tcp(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address that `host` means; port 0 takes a free one.

    Raises `PortNotAvailable` where somebody has it, `InvalidRequest` where `host` means nothing here.
    """
    try:
        found = await trio.socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise InvalidRequest(f"host {host!r} is not known here: {error.strerror}") from None
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            # One port for all addresses of a name, also where it was left to the system.
            chosen = sockets[0].getsockname()[1] if sockets and port == 0 else address[1]
            try:
                sock = stack.enter_context(socket.socket(family, kind, protocol))
                _tune(sock, family)
                sock.bind((address[0], chosen, *address[2:]))
                sock.listen(_BACKLOG)
            except OSError as error:
                if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) and len(found) > 1:
                    continue  # `localhost` may mean ::1 on a machine without IPv6
                if error.errno == errno.EADDRINUSE:
                    raise PortNotAvailable(
                        f"Port {port} is not available on {host}: something else is listening there. "
                        "Choose another with --port."
                    ) from None
                raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}") from None
            sockets.append(sock)
        if not sockets:
            raise InvalidRequest(f"cannot listen on {host}:{port}: no usable address")
        stack.pop_all()
        return sockets


def _tune(sock: socket.socket, family: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # what is accepted inherits it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1000))


@contextmanager
def bound_unix(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path` that only this user may open; the file is gone in the end.

    A socket file that is there already is a dead manager's: whoever calls this holds the database's lock.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        except FileNotFoundError:
            pass
        # The directory is 0700. The mode is set before anybody can connect, which takes listen().
        sock.bind(os.fspath(path))
        try:
            os.chmod(path, 0o600)
            sock.listen(_BACKLOG)
            yield sock
        finally:
            path.unlink(missing_ok=True)
