"""Hands a value and open descriptors to a process at the other end of a stream socket.

A message is one JSON value of any size; the descriptors come with its first byte (unix(7), SCM_RIGHTS). The
manager and its fork servers talk so, see `agentmgr.fork_server`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

HEAD = struct.Struct("=II")  #: bytes of JSON, number of descriptors
MOST = 32  #: descriptors in one message; Linux takes 253

VERSION = 1  #: of what manager and fork server say: `--python` may have another agentmgr than the manager
FIRST_FD = 3  #: the number of the first descriptor that a forked process inherits

Ancillary = list[tuple[int, int, bytes]]


def packed(value: Any, descriptors: Sequence[int] = ()) -> tuple[bytes, Ancillary]:
    """The message, and what is to be sent with its first byte."""
    # In ASCII: names in the environment and in paths may hold bytes that are no UTF-8.
    body = json.dumps(value, separators=(",", ":")).encode("ascii")
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors).tobytes())
    return HEAD.pack(len(body), len(descriptors)) + body, [rights] if descriptors else []


def unpacked(message: bytes) -> Any:
    return json.loads(message[HEAD.size :])


def send(to: socket.socket, value: Any) -> None:
    """To a socket that blocks, without descriptors. Raises OSError."""
    to.sendall(packed(value)[0])


def receive(source: socket.socket) -> tuple[Any, list[int]] | None:
    """The next value and its descriptors, which are closed on exec; None at the end of the stream.

    From a socket that blocks. Raises OSError, also when not all the descriptors came, as at the limit of open
    files; those that came are closed then.
    """
    head, descriptors, _, _ = socket.recv_fds(source, HEAD.size, MOST)
    if not head:
        return None
    with ExitStack() as undo:
        for descriptor in descriptors:
            undo.callback(os.close, descriptor)
        size, count = HEAD.unpack(head + _exactly(source, HEAD.size - len(head)))
        if len(descriptors) != count:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        value = json.loads(_exactly(source, size))
        undo.pop_all()
    return value, descriptors


def _exactly(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (more := source.recv(size - len(data))):
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        data += more
    return bytes(data)
