"""The manager's own socket. Only the user who runs the manager can open it; that is its whole access rule."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

_BACKLOG = 256


@contextmanager
def control_listener(path: Path) -> Iterator[trio.SocketListener]:
    """A listener at `path` that only this user may open; the file is gone in the end.

    A socket file that is there already is a dead manager's: whoever calls this holds the database's lock.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        except FileNotFoundError:
            pass
        # The directory is 0700, and nobody can connect before listen().
        sock.bind(os.fspath(path))
        mine = os.lstat(path).st_ino
        try:
            os.chmod(path, 0o600)
            sock.listen(_BACKLOG)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        finally:
            try:
                # The next manager may have put its own there, once this one gave up the lock.
                if os.lstat(path).st_ino == mine:
                    os.unlink(path)
            except FileNotFoundError:
                pass
