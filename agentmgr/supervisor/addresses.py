"""Where an instance listens: on a socket of ours that it inherits, or on a port that is lent to it.

An inherited socket is bound before the process exists and stays open over its restarts: there is no race for
the port, and a client that connects during a restart waits instead of being refused. A command opens its own
socket. So each port is lent only once, and the supervisor looks which process listens on it before a client
is sent there.
"""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
from contextlib import suppress

import trio

from ..core.restart import Cause
from . import listening_sockets, procfs
from .belonging import owner
from .launcher import CannotLaunch

_BACKLOG = 1024

_random = random.SystemRandom()  # several managers must not draw the same ports in the same order


async def resolve(host: str) -> str:
    """The numeric form of a host to listen on, IPv4 preferred. Raises `CannotLaunch`."""
    if host == "localhost":  # by far the most common; saves a thread
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        reason = f"the host {host!r} is not known: {error.strerror}"
        raise CannotLaunch(Cause.CANNOT_EXECUTE, reason) from None
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return str(found[0][4][0])


def to_dial(bound: str) -> str:
    """The address at which this machine reaches a socket that is bound to `bound`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bound, bound)


def bind(host: str, port: int | None, *, fixed: bool) -> socket.socket:
    """A bound TCP socket, not yet listening. Raises `CannotLaunch`."""
    version = ipaddress.ip_address(host).version
    sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not to wait for TIME_WAIT
        sock.bind((host, port or 0))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE and port is not None:
            cause = Cause.PORT_TAKEN if fixed else Cause.PORT_LOST
            raise CannotLaunch(cause, taken(host, port, fixed=fixed)) from None
        reason = f"cannot listen on {host}: {error.strerror}"
        raise CannotLaunch(Cause.CANNOT_EXECUTE, reason) from None
    return sock


def listen(host: str, port: int | None, *, fixed: bool) -> socket.socket:
    """A listening socket for a child to inherit. Raises `CannotLaunch`."""
    sock = bind(host, port, fixed=fixed)
    try:
        sock.listen(_BACKLOG)
    except OSError:  # two may bind with SO_REUSEADDR, only one may listen
        sock.close()
        assert port is not None
        raise CannotLaunch(
            Cause.PORT_TAKEN if fixed else Cause.PORT_LOST, taken(host, port, fixed=fixed)
        ) from None
    return sock


def taken(host: str, port: int, *, fixed: bool) -> str:
    """Which process holds the port and, if the user chose it (`fixed`), what to do."""
    inode = listening_sockets.on_port(port)
    pid = listening_sockets.holder(inode) if inode is not None else None
    by = procfs.name(pid) if pid is not None else "another process"
    if pid is not None and (database := owner(pid)) is not None:
        by += f", which belongs to {database}"
    advice = "; choose another port, or leave it out to have one chosen" if fixed else ""
    return f"port {port} on {host} is held by {by}{advice}"


class Ports:
    """The ports that are lent to commands, each to one."""

    # Below the range from which Linux takes the ports of outgoing connections. A port from that range, free
    # now, could be one end of such a connection by the time the command binds it.
    _CHOICE = range(20_000, 32_768)
    _TRIES = 100

    def __init__(self) -> None:
        self._lent: set[int] = set()

    def lend(self, host: str, port: int | None) -> int:
        """`port`, or one that was free a moment ago. Raises `CannotLaunch`."""
        if port is not None:
            return self._try(host, port, fixed=True)
        for _ in range(self._TRIES):
            with suppress(CannotLaunch):
                return self._try(host, _random.choice(self._CHOICE), fixed=False)
        raise CannotLaunch(Cause.SHORTAGE, f"no free port found on {host}")

    def _try(self, host: str, port: int, *, fixed: bool) -> int:
        if port in self._lent:
            raise CannotLaunch(Cause.PORT_TAKEN, f"port {port} on {host} belongs to another service")
        listen(host, port, fixed=fixed).close()
        self._lent.add(port)
        return port

    def adopt(self, port: int) -> None:
        """Counts as lent: a command that an earlier manager started has it."""
        self._lent.add(port)

    def take_back(self, port: int) -> None:
        self._lent.discard(port)
