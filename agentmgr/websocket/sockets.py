"""One TCP connection, plain or TLS: `Wire` for the gateway and the supervisor's probe, a stream for clients.

A wire is a socket of the standard library and the few waits it needs, and no `trio.SocketStream`:
after the handshakes the relay serves the bare socket from a plain loop (`proxy.tunnel`), and `ssl.SSLSocket`
lets it do so with the same calls for both kinds.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress

import trio

Dial = Callable[[str, int], Awaitable[trio.SocketStream]]
"""Connects to a host and a port. Raises `OSError`."""

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

OUR_OWN_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
"""This process has no descriptor, memory or port left, which says nothing of its peer."""

_AGAIN = (BlockingIOError, InterruptedError, ssl.SSLWantReadError)
_DISCARDED_BYTES = 64 * 1024


class Wire:
    """Owns the socket; the owner of the wire closes it."""

    __slots__ = ("ahead", "at_gate", "half_closes", "secure", "sock")

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        self.sock = sock
        self.ahead = b""  #: received along with the handshake; the first bytes of what follows it
        self.secure = isinstance(sock, ssl.SSLSocket)
        self.half_closes = not self.secure  #: the peer sees `end_sending`, and goes on sending
        self.at_gate = False  #: an instance of another node is at its end, behind the gate of that node

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Becomes a TLS server. Raises `OSError` (`ssl.SSLError` is one)."""
        await self._shake_hands(
            context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
        )

    async def start_tls_client(
        self, context: ssl.SSLContext, *, session: ssl.SSLSession | None = None
    ) -> ssl.SSLSocket:
        """Becomes a TLS client; `session`: of an earlier connection to the same server, which costs less.

        A stream that ends without TLS saying so is an error then, as it may be cut. Raises `OSError`.
        """
        sock = context.wrap_socket(
            self.sock, do_handshake_on_connect=False, suppress_ragged_eofs=False, session=session
        )
        await self._shake_hands(sock)
        return sock

    async def _shake_hands(self, sock: ssl.SSLSocket) -> None:
        self.sock, self.secure, self.half_closes = sock, True, False
        while True:
            try:
                return sock.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(sock)

    async def receive(self, max_bytes: int) -> bytes:
        """At least one byte; `b""` at the end of the stream. Raises `OSError`."""
        while True:
            try:
                return self.sock.recv(max_bytes)
            except _AGAIN:
                await trio.lowlevel.wait_readable(self.sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.sock)

    async def peek(self, max_bytes: int) -> bytes:
        """What `receive` would give, which still gives it. Not over TLS."""
        while True:
            try:
                return self.sock.recv(max_bytes, socket.MSG_PEEK)
            except _AGAIN:
                await trio.lowlevel.wait_readable(self.sock)

    async def wait_gone(self, max_ahead: int) -> None:
        """Returns when the peer has left. What it sends meanwhile goes to `ahead`, up to so many bytes."""
        with suppress(OSError):
            while len(self.ahead) < max_ahead:
                data = await self.receive(max_ahead - len(self.ahead))
                if not data:
                    return
                self.ahead += data
            await trio.sleep_forever()  # it is there, and sends much: the kernel makes it wait

    async def send_all(self, data: bytes | memoryview) -> None:
        """Raises `OSError`."""
        view = memoryview(data)
        while view:
            view = view[await self.send_some(view) :]

    async def send_some(self, data: bytes | memoryview) -> int:
        """Sends at least one byte, and says how many. Raises `OSError`."""
        while True:
            try:
                return self.sock.send(data)
            except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self.sock)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.sock)

    def send_now(self, data: bytes | memoryview) -> int:
        """Sends what goes at once, and says how much that was. Raises `OSError`."""
        try:
            return self.sock.send(data)
        except (*_AGAIN, ssl.SSLWantWriteError):
            return 0

    def end_sending(self) -> None:
        """Half close: the peer sees the end of the stream, and may still send."""
        with suppress(OSError):
            if self.half_closes:
                # Of TCP, beneath TLS if there is TLS: OpenSSL would drop what comes after its own.
                socket.socket.shutdown(self.sock, socket.SHUT_WR)
            # Else TLS has no half close that peers agree on; the close frame says it all.

    async def finish(self) -> None:
        """Ends the stream in order: returns when the peer, which has got all of it, has ended it too.

        Closing with unread data would be a reset, which overtakes what was sent last. Raises `OSError`.
        """
        if isinstance(self.sock, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                self.sock.unwrap()  # as in `close`
        socket.socket.shutdown(self.sock, socket.SHUT_WR)
        while True:
            try:
                if not socket.socket.recv(self.sock, _DISCARDED_BYTES):
                    return
                await trio.lowlevel.checkpoint()  # it may send faster than we read
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    def abort(self) -> None:
        """Closes without a word: over TLS the peer knows that the stream was cut."""
        with suppress(OSError):
            self.sock.close()

    def close(self) -> None:
        with suppress(OSError, ValueError):
            if isinstance(self.sock, ssl.SSLSocket):
                self.sock.unwrap()  # sends close_notify; non-blocking, so it waits for no answer
        with suppress(OSError):
            self.sock.close()


async def connect(host: str, port: int, dial: Dial | None = None) -> Wire:
    """Connects with `dial`, or over TCP, trying the host's addresses in turn. Raises `OSError`."""
    if dial is not None:
        return Wire(socket.socket(fileno=(await dial(host, port)).socket.detach()))
    last: OSError | None = None
    for family, address in await _addresses(host, port):
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with ExitStack() as until_connected:
            wire = until_connected.enter_context(closing(Wire(sock)))
            try:
                tune(sock, far=not _numeric_loopback(address[0]))
                await connect_socket(sock, address)
            except OSError as error:
                last = error
                continue
            until_connected.pop_all()
            return wire
    raise last or OSError(f"{host} has no address")


async def open_stream(
    host: str, port: int, *, dial: Dial = trio.open_tcp_stream, tls: ssl.SSLContext | None = None
) -> Stream:
    """Connects as a client program, over TLS where `tls` is given.

    Raises `OSError`, or `trio.BrokenResourceError` where TLS fails.
    """
    stream = await dial(host, port)
    try:
        _refuse_itself(stream.socket, port)
    except OSError:
        await trio.aclose_forcefully(stream)
        raise
    if tls is None:
        return stream
    secure = trio.SSLStream(stream, tls, server_hostname=host, https_compatible=True)
    try:
        await secure.do_handshake()
    except (OSError, trio.BrokenResourceError, trio.Cancelled):
        await trio.aclose_forcefully(stream)
        raise
    return secure


async def connect_socket(sock: socket.socket, address: tuple[str, int]) -> None:
    """Connects a non-blocking socket to a numeric address. Raises `OSError`."""
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        # On loopback it is done by now, and asking costs a tenth of waiting for it.
        error = sock.connect_ex(address)
    if error == errno.EALREADY:
        await trio.lowlevel.wait_writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error and error != errno.EISCONN:
        raise OSError(error, os.strerror(error))
    _refuse_itself(sock, address[1])


def _refuse_itself(sock: socket.socket | trio.socket.SocketType, port: int) -> None:
    """Where nothing listens, Linux may give a socket the very port that it dials on loopback.

    It is then connected to itself, and holds the port that a restarting server needs. Raises `OSError`.
    """
    ours = sock.getsockname()
    if sock.family != socket.AF_UNIX and ours[1] == port and ours == sock.getpeername():
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


async def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    if host == "localhost":  # no resolver, no thread: what nearly every instance is
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return [(family, (host, port))]
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found]


def _numeric_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def tune(sock: socket.socket | trio.socket.SocketType, *, far: bool = True) -> None:
    """Sets the options for one side of a connection; `far`: over a network, which may fail silently.

    On a listener, the accepted sockets inherit it (Linux). A unix socket needs none of it.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small messages must not wait for an ACK
    if not far:
        return
    # It is noticed after 30 + 3 * 15 = 75 s of silence, or 90 s of unacknowledged data.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000)  # milliseconds
