"""A real Redis for tests, on a unix socket in a directory of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_LIBC = ctypes.CDLL(None)
PROGRAM = shutil.which("redis-server")
NEEDS_REDIS = pytest.mark.skipif(
    PROGRAM is None, reason="there is no redis-server here: apt-get install redis-server"
)


class RedisServer:
    """`options`: of its configuration, as redis-server takes them after its name."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self.url = f"unix://{self.socket}"
        self.options = options
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        assert PROGRAM is not None
        self.socket.unlink(missing_ok=True)  # of one that was killed: a client would be refused there
        words = [PROGRAM, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory)]
        words += ["--save", "", "--loglevel", "warning", *self.options]
        self._popen = subprocess.Popen(words, stdout=subprocess.DEVNULL, preexec_fn=_die_with_the_tests)
        give_up_at = time.monotonic() + 60
        while True:
            with suppress(OSError), closing_socket(self.socket) as client:
                client.sendall(b"PING\r\n")
                if client.recv(64):  # it may say that it wants a password first
                    return
            assert self._popen.poll() is None, "redis-server ended at once"
            assert time.monotonic() < give_up_at
            time.sleep(0.01)

    def kill(self) -> None:
        """As a crash does: what its log of writes lacks is gone."""
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait()

    @contextmanager
    def suspended(self):
        assert self._popen is not None
        os.kill(self._popen.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._popen.pid, signal.SIGCONT)

    def __call__(self, *words: str) -> bytes:
        """What it answers to a command, as it is on the wire."""
        with closing_socket(self.socket) as client:
            parts = [f"*{len(words)}\r\n", *(f"${len(word.encode())}\r\n{word}\r\n" for word in words)]
            client.sendall("".join(parts).encode())
            return client.recv(2**20)


def _die_with_the_tests() -> None:
    """Also when they are killed."""
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextmanager
def closing_socket(path: Path):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        yield client


@contextmanager
def running_redis(*options: str):
    """Its path is short: a socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="am-redis-") as directory:
        server = RedisServer(Path(directory), *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
