"""Which user is at the other end of a connection, as the kernel says.

Loopback is not an identity: every user of the machine reaches every loopback port. For a unix socket the
kernel keeps the peer's credentials (unix(7), SO_PEERCRED). For TCP it keeps the owner of each socket; the
client's end of a loopback connection is a socket of this machine, and sock_diag(7) finds it by its addresses
in 60 µs, however many connections there are. Where the kernel has no sock_diag, /proc/net/tcp says the same.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from typing import Protocol

UCRED = struct.Struct("3i")  #: struct ucred (unix(7)): pid, uid, gid

# For a question to sock_diag(7), from linux/netlink.h and linux/sock_diag.h; Python has no names for them.
NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR = 2
NLMSGHDR = struct.Struct("=IHHII")  #: struct nlmsghdr: length, type, flags, sequence, pid
_NLM_F_REQUEST = 1
_ANY_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
_ANSWER = struct.Struct("=BBBB 4s 44s 12s II")  # struct inet_diag_msg: state at 1; uid and inode last
_CLOSED_STATES = {6, 7}  # TIME_WAIT, CLOSE (linux/tcp_states.h)

Address = tuple[str, int]


class AnySocket(Protocol):
    """A socket of the standard library, or of trio."""

    @property
    def family(self) -> int: ...

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes: ...

    def getpeername(self) -> object: ...

    def getsockname(self) -> object: ...


def peer_uid(sock: AnySocket) -> int | None:
    """The user id that owns the other end of a connected socket; None where the kernel does not say.

    None for a connection of another machine, for a socket that its owner has closed already (the kernel calls
    root the owner of those), and for a connection that passed through a forwarder of this machine's kernel.
    """
    if sock.family == socket.AF_UNIX:
        return _unix_peer_uid(sock)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        client, server = _address(sock.getpeername()), _address(sock.getsockname())
    except OSError:  # it is not connected any more
        return None
    if not ipaddress.ip_address(client[0]).is_loopback:
        return None
    try:
        return _by_sock_diag(client, server)
    except OSError:  # no such protocol in this kernel, or not allowed here (seccomp)
        return _by_proc(client, server)


def peer_pid(sock: AnySocket) -> int:
    """The process that connected the other end of a unix socket. Raises OSError."""
    return _peer_credentials(sock)[0]


def listener_uid(host: str, port: int) -> int | None:
    """The user id that owns the socket which takes connections at this address of the machine.

    None where no socket does, or the kernel has no sock_diag. `host` is numeric; for other texts None.
    """
    try:
        server, anyone = _address((host, port)), ("::" if ":" in host else "0.0.0.0", 0)
        return _by_sock_diag(server, anyone)  # 16 µs
    except (OSError, ValueError):
        return None


def _unix_peer_uid(sock: AnySocket) -> int | None:
    try:
        return _peer_credentials(sock)[1]
    except OSError:
        return None


def _peer_credentials(sock: AnySocket) -> tuple[int, int, int]:
    pid, uid, gid = UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    return pid, uid, gid


def _address(name: object) -> Address:
    """Address and port, IPv4 as IPv4: a socket of both families shows it mapped into IPv6."""
    assert isinstance(name, tuple)
    address = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), name[1]


def _by_sock_diag(client: Address, server: Address) -> int | None:
    """Raises OSError where it cannot be asked."""
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    packed = [socket.inet_pton(family, host).ljust(16, b"\0") for host, _ in (client, server)]
    which = struct.pack(">HH", client[1], server[1]) + b"".join(packed) + struct.pack("=I", 0) + _ANY_COOKIE
    every_state = 0xFFFF_FFFF
    body = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, every_state) + which
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK  # the kernel answers within sendto
    with socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG) as netlink:
        netlink.sendto(
            NLMSGHDR.pack(NLMSGHDR.size + len(body), SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + body, (0, 0)
        )
        answer = netlink.recv(4096)
    _, message_kind, *_ = NLMSGHDR.unpack_from(answer)
    if message_kind == NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, NLMSGHDR.size)[0]
        if code == errno.ENOENT and _by_proc(client, server) is None:
            return None  # no such socket; without the module that knows TCP sockets the answer is the same
        raise OSError(code, "sock_diag refused")
    _, state, _, _, _, _, _, uid, inode = _ANSWER.unpack_from(answer, NLMSGHDR.size)
    return None if inode == 0 or state in _CLOSED_STATES else int(uid)


def _by_proc(client: Address, server: Address) -> int | None:
    """From the table of proc(5), whose size is the number of this machine's connections."""
    mapped = [(f"::ffff:{host}", port) for host, port in (client, server)]
    tables = (
        (("tcp6", (client, server)),) if ":" in client[0] else (("tcp", (client, server)), ("tcp6", mapped))
    )
    for name, pair in tables:
        wanted = [_as_in_proc(address) for address in pair]
        try:
            with open(f"/proc/self/net/{name}", encoding="ascii") as table:
                for line in table:
                    fields = line.split()
                    if fields[1:3] == wanted:
                        closed = int(fields[3], 16) in _CLOSED_STATES or fields[9] == "0"
                        return None if closed else int(fields[7])
        except OSError:  # no /proc, or a kernel without IPv6
            continue
    return None


def _as_in_proc(address: Address) -> str:
    """As `0100007F:1F90`: each 32-bit word of the address in this machine's byte order."""
    packed = ipaddress.ip_address(address[0]).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
