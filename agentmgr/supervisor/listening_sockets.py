"""Which sockets and processes listen on a TCP port of this machine: the kernel is asked by netlink.

/proc/net/tcp has the same, but lists every connection too: with 1,700 of them it took 20 ms to read, and a
gateway has many more (measured).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from ..process.peer import NETLINK_SOCK_DIAG, NLMSG_ERROR, NLMSGHDR, SOCK_DIAG_BY_FAMILY
from . import procfs

# linux/netlink.h, linux/inet_diag.h, net/tcp_states.h
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_DONE = 3
_TCP_LISTEN = 10
_REQUEST = struct.Struct("=BBBBL48x")  # struct inet_diag_req_v2: family, protocol, ext, pad, states, id
_PORT = struct.Struct("!H")
_PORT_AT, _INODE_AT = 4, 68  # in struct inet_diag_msg
_INODE = struct.Struct("=L")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def on_port(port: int) -> int | None:
    """The inode of a socket that listens on it, at any address; None if there is none."""
    try:
        for family in _FAMILIES:
            for found, inode in _ask(family):
                if found == port:
                    return inode
    except OSError:  # some sandboxes have no netlink
        return next((inode for found, inode in _look() if found == port), None)
    return None


def ports() -> dict[int, int]:
    """The ports that are listened on, by the inode of the socket. Raises OSError."""
    try:
        return {inode: port for family in _FAMILIES for port, inode in _ask(family)}
    except OSError:
        return {inode: port for port, inode in _look()}


def holder(inode: int) -> int | None:
    """A process that has this socket open, if this process may look into it."""
    return next((pid for pid in procfs.pids() if procfs.holds(pid, inode)), None)


def _ask(family: int) -> list[tuple[int, int]]:
    """Port and inode of each listening socket."""
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 1 << _TCP_LISTEN)
    header = NLMSGHDR.pack(NLMSGHDR.size + len(request), SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0)
    found: list[tuple[int, int]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.send(header + request)
        while True:
            data = netlink.recv(2**16)
            while data:
                length, kind, *_ = NLMSGHDR.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    (number,) = struct.unpack_from("=l", data, NLMSGHDR.size)
                    raise OSError(-number, os.strerror(-number))
                (port,) = _PORT.unpack_from(data, NLMSGHDR.size + _PORT_AT)
                (inode,) = _INODE.unpack_from(data, NLMSGHDR.size + _INODE_AT)
                found.append((port, inode))
                data = data[(length + 3) & ~3 :]


def _look() -> Iterator[tuple[int, int]]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, "rb") as file:
                lines = file.readlines()[1:]
        except FileNotFoundError:  # no IPv6 here
            continue
        for line in lines:
            fields = line.split(None, 10)
            if fields[3] == b"0A":
                yield int(fields[1].rpartition(b":")[2], 16), int(fields[9])
