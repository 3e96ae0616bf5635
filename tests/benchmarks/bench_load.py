"""The load for `bench_gateway`: an echo server and its clients, each a plain epoll loop.

`python bench_load.py PORT` is the echo server alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from agentmgr.websocket.head import accept_token

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
REQUEST = (
    "GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
    "User-Agent: bench\r\nAccept-Encoding: gzip\r\nOrigin: http://localhost\r\nCookie: a=1\r\n\r\n"
).encode()


def frame(size: int) -> bytes:
    """A masked binary frame; the mask is zero."""
    if size < 126:
        length = bytes([0x80 | size])
    else:
        length = b"\xfe" + size.to_bytes(2, "big") if size < 2**16 else b"\xff" + size.to_bytes(8, "big")
    return b"\x82" + length + bytes(4) + bytes(size)


def answer_to(data: bytes) -> tuple[bytes, int]:
    """The beginning of a masked frame, without the mask, and how many bytes are missing."""
    size, start = data[1] & 0x7F, 2
    if size > 125:
        start = 4 if size == 126 else 10
        size = int.from_bytes(data[2:start], "big")
    answer = data[:1] + bytes([data[1] & 0x7F]) + data[2:start] + data[start + 4 :]
    return answer, size + start - len(answer)


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """A server in a process of its own; its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        port = listener.getsockname()[1]
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        process = context.Process(target=_serve, args=(listener, ready.set), daemon=True)
        process.start()
        ready.wait()
        try:
            yield port
        finally:
            process.terminate()
            process.join()


def _serve(listener: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    socks: dict[int, socket.socket] = {}
    missing: dict[int, int] = {}  # bytes of a message that is not complete; -1: no request yet
    ready()
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, _ = listener.accept()
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        socks[sock.fileno()] = sock
                        missing[sock.fileno()] = -1
                        epoll.register(sock, select.EPOLLIN)
                continue
            sock = socks[fd]
            try:
                data = sock.recv(256 * 1024)
                if data and missing[fd] < 0:
                    missing[fd] = 0
                    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", data)
                    assert key is not None
                    data = (
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Accept: {accept_token(key[1].decode())}\r\n\r\n"
                    ).encode()
                elif data and missing[fd]:
                    missing[fd] -= len(data)
                elif data:
                    data, missing[fd] = answer_to(data)
                if data:
                    sock.setblocking(True)
                    sock.sendall(data)
                    continue
            except OSError:
                pass
            epoll.unregister(sock)
            sock.close()
            del socks[fd]
            del missing[fd]


def connect(port: int) -> socket.socket:
    """A client whose upgrade has been answered."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        data = sock.recv(4096)
        if not data:
            raise ConnectionError(f"no upgrade: {answer!r}")
        answer += data
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError(f"no upgrade: {answer!r}")
    return sock


def wait_for_accept(port: int) -> float:
    """When the port first accepted a connection, by the monotonic clock."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return time.monotonic()
        except OSError:
            time.sleep(0.002)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return connect(port).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def clients(port: int, count: int) -> Iterator[Sequence[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(connect(port))) for _ in range(count)]


def ping_pong(socks: Sequence[socket.socket], size: int, seconds: float) -> tuple[int, float]:
    """Each sends a frame, and the next when it is back: the echoes, and the median time of one."""
    message = frame(size)
    answer_bytes = len(message) - 4  # no mask
    epoll = select.epoll()
    by_fd, missing, sent_at = {}, {}, {}
    times: list[float] = []
    for sock in socks:
        sock.settimeout(10)
        by_fd[sock.fileno()] = sock
        missing[sock.fileno()] = answer_bytes
        epoll.register(sock, select.EPOLLIN)
    count, end = 0, time.monotonic() + seconds
    with epoll:
        for fd, sock in by_fd.items():
            sent_at[fd] = time.monotonic()
            sock.sendall(message)
        waiting = len(by_fd)
        while waiting:
            for fd, _ in epoll.poll(10):
                sock = by_fd[fd]
                missing[fd] -= len(sock.recv(256 * 1024))
                if missing[fd]:
                    continue
                now = time.monotonic()
                count += 1
                times.append(now - sent_at[fd])
                if now >= end:
                    waiting -= 1
                    continue
                missing[fd] = answer_bytes
                sent_at[fd] = now
                sock.sendall(message)
    return count, statistics.median(times)


def open_and_close(port: int, seconds: float) -> int:
    """Opens a connection, has one echo, closes it with a close frame, again and again: how many."""
    count, end = 0, time.monotonic() + seconds
    message, close = frame(32), b"\x88\x82" + bytes(4) + b"\x03\xe8"
    while time.monotonic() < end:
        with contextlib.closing(connect(port)) as sock:
            sock.sendall(message)
            sock.recv(4096)
            sock.sendall(close)
            sock.recv(4096)
        count += 1
    return count


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as only:
        _serve(only)
