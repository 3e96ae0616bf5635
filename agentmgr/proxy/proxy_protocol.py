"""The PROXY protocol, versions 1 and 2: how a proxy before us says whose connection it passes on.

Sans-IO, after the specification at haproxy.org (proxy-protocol.txt, section 2). It is strict: a peer that
may say who the client is must say it right, and a header that is not understood ends the connection.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from attrs import frozen

MOST_BYTES = 4096
"""The longest header. Version 1 has at most 107 bytes; version 2 may carry a client's certificate name."""

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED_BYTES = 16  # of version 2: signature, version and command, family, length
_LINE_BYTES = 107  # of version 1, its end included
_PORT = r"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(rf"PROXY TCP([46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) {_PORT} {_PORT}\r\n")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")

_LOCAL, _PROXY = 0x20, 0x21  # version 2 in the upper half
_ADDRESS_BYTES = {0x11: 4, 0x21: 16}  # TCP over IPv4 and IPv6
_UNSPEC = 0x00
_SSL = 0x20  # PP2_TYPE_SSL; the first bit of its value: the client came over TLS


class BadProxyHeader(Exception):
    """What a connection begins with is no PROXY header, or one that we do not take."""


@frozen
class Origin:
    """Where a connection comes from, as the proxy says."""

    client: tuple[str, int] | None  #: address and port; None: from the proxy itself, as its health checks do
    secure: bool = False  #: the client came over TLS, and the proxy took that off


class ProxyHeaderReader:
    """Takes a connection's first bytes, in whatever pieces, until the header is complete."""

    def __init__(self) -> None:
        self._data = b""
        self.origin: Origin | None = None  #: set when the header is complete

    def feed(self, data: bytes) -> int:
        """How many of these bytes are the header's; at least one. Raises `BadProxyHeader`."""
        before = len(self._data)
        together = self._data + data
        end = _version_2_end(together) if _is_version_2(together) else _version_1_end(together)
        self._data = together[:end]
        if end is not None:
            read = _read_version_2 if _is_version_2(together) else _read_version_1
            self.origin = read(self._data)
        return len(self._data) - before


def _is_version_2(data: bytes) -> bool:
    """Raises `BadProxyHeader` for what can be neither version."""
    if data[:12] == _SIGNATURE[: len(data)]:
        return True
    if data[:6] == b"PROXY "[: len(data)]:
        return False
    raise BadProxyHeader("the connection does not begin with a PROXY header")


def _version_1_end(data: bytes) -> int | None:
    """Where the header ends; None: not yet."""
    end = data.find(b"\n", 0, _LINE_BYTES) + 1
    if not end and len(data) >= _LINE_BYTES:
        raise BadProxyHeader(f"its line is over {_LINE_BYTES} bytes")
    return end or None


def _read_version_1(line: bytes) -> Origin:
    if _UNKNOWN.fullmatch(line):
        return Origin(None)
    match = _LINE.fullmatch(line.decode("latin-1"))
    if match is None:
        raise BadProxyHeader("its line is malformed")
    family, source, destination, *ports = match.groups()
    try:
        addresses = [ip_address(source), ip_address(destination)]
    except ValueError:
        raise BadProxyHeader("its line has a bad address") from None
    if any(str(address.version) != family for address in addresses) or any(int(p) > 65535 for p in ports):
        raise BadProxyHeader("its line has a bad address or port")
    return Origin((_plain(source), int(ports[0])))


def _version_2_end(data: bytes) -> int | None:
    if len(data) < _FIXED_BYTES:
        return None
    end = _FIXED_BYTES + int.from_bytes(data[14:16])
    if end > MOST_BYTES:
        raise BadProxyHeader(f"it is over {MOST_BYTES} bytes")
    return end if len(data) >= end else None


def _read_version_2(header: bytes) -> Origin:
    command, family = header[12], header[13]
    if command == _LOCAL:
        return Origin(None)
    if command != _PROXY:
        raise BadProxyHeader(f"its version and command are {command:#04x}")
    if family == _UNSPEC:
        return Origin(None)
    size = _ADDRESS_BYTES.get(family)
    if size is None:
        raise BadProxyHeader(f"it speaks of family {family:#04x}; only TCP comes in here")
    rest = header[_FIXED_BYTES:]
    if len(rest) < 2 * size + 4:
        raise BadProxyHeader("it is too short for its addresses")
    source, port = rest[:size], rest[2 * size : 2 * size + 2]
    client = (_plain(str(ip_address(source))), int.from_bytes(port))
    return Origin(client, secure=_came_over_tls(rest[2 * size + 4 :]))


def _came_over_tls(vectors: bytes) -> bool:
    """Goes through the type-length-value vectors that follow the addresses."""
    secure = False
    while vectors:
        length = int.from_bytes(vectors[1:3])
        value = vectors[3 : 3 + length]
        if len(vectors) < 3 + length:
            raise BadProxyHeader("its last vector is cut off")
        if vectors[0] == _SSL and value:
            secure = bool(value[0] & 1)
        vectors = vectors[3 + length :]
    return secure


def _plain(address: str) -> str:
    """As rules and limits know it: an IPv4 address that was wrapped in IPv6 is that IPv4 address."""
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)
