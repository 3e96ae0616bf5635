"""The PROXY header: what it says is what we read, in any pieces, and anything else is refused.

Examples and rules are those of proxy-protocol.txt, section 2.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmgr.proxy.proxy_protocol import MOST_BYTES, BadProxyHeader, Origin, ProxyHeaderReader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PORTS = st.integers(0, 65535)


def version_1(source: str, port: int, target: str = "", target_port: int = 443) -> bytes:
    family = ip_address(source).version
    target = target or ("192.0.2.1" if family == 4 else "2001:db8::1")
    return f"PROXY TCP{family} {source} {target} {port} {target_port}\r\n".encode()


def version_2(
    source: str = "198.51.100.7", port: int = 5000, vectors: bytes = b"", command: int = 0x21, **more: int
) -> bytes:
    address = ip_address(source)
    body = address.packed * 2 + port.to_bytes(2) + b"\x01\xbb" + vectors
    family = more.get("family", 0x11 if address.version == 4 else 0x21)
    return SIGNATURE + bytes([command, family]) + more.get("length", len(body)).to_bytes(2) + body


def vector(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2) + value


def read(data: bytes) -> tuple[Origin | None, int]:
    """What the header at the beginning says, and its length."""
    reader = ProxyHeaderReader()
    taken = reader.feed(data)
    return reader.origin, taken


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(
    lambda a: isinstance(a, IPv4Address) or a.ipv4_mapped is None
)
HEADERS = st.one_of(
    st.builds(lambda a, port: (version_1(str(a), port), Origin((str(a), port))), ADDRESSES, PORTS),
    st.builds(
        lambda a, port, names, tls: (
            version_2(
                str(a), port, b"".join(vector(0xEA, name) for name in names) + vector(0x20, bytes([tls]))
            ),
            Origin((str(a), port), secure=bool(tls & 1)),
        ),
        ADDRESSES,
        PORTS,
        st.lists(st.binary(max_size=30), max_size=4),
        st.integers(0, 7),
    ),
    st.just((b"PROXY UNKNOWN\r\n", Origin(None))),
    st.just((b"PROXY UNKNOWN ffff:f 65535 anything\r\n", Origin(None))),
    st.just((version_2(command=0x20), Origin(None))),
    st.just((SIGNATURE + b"\x20\x00\x00\x00", Origin(None))),
    st.just((SIGNATURE + b"\x21\x00\x00\x03abc", Origin(None))),
)


@given(HEADERS, st.binary(max_size=200), st.data())
def test_it_reads_what_was_meant_in_any_pieces_and_takes_no_more(
    header: tuple[bytes, Origin], behind: bytes, draw: st.DataObject
) -> None:
    data, meant = header
    reader, taken = ProxyHeaderReader(), 0
    while reader.origin is None:
        shown = draw.draw(st.integers(1, len(data) + len(behind) - taken))
        count = reader.feed((data + behind)[taken : taken + shown])
        assert 1 <= count <= shown
        taken += count
    assert (reader.origin, taken) == (meant, len(data))


@given(
    st.one_of(st.binary(min_size=1), st.binary().map(SIGNATURE.__add__), st.binary().map(b"PROXY ".__add__))
)
def test_garbage_raises_nothing_else(data: bytes) -> None:
    reader = ProxyHeaderReader()
    try:
        taken = reader.feed(data)
    except BadProxyHeader:
        return
    assert 1 <= taken <= min(len(data), MOST_BYTES)


@given(HEADERS, st.data())
def test_a_changed_byte_gives_another_reading_or_none_but_no_crash(
    header: tuple[bytes, Origin], draw: st.DataObject
) -> None:
    data = bytearray(header[0])
    data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        origin, _ = read(bytes(data))
    except BadProxyHeader:
        return
    if origin is not None and origin.client is not None:
        address, port = origin.client
        assert isinstance(ip_address(address), IPv4Address | IPv6Address)
        assert 0 <= port <= 65535


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n",
        b"PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        b"PROXY TCP5 ::1 ::1 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY UNKNOWNtoo\r\n",
        b"PROXY UNKNOWN \n\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY UNKNOWN " + b"x" * 93,
        version_2(command=0x11),
        version_2(command=0x22),
        version_2(family=0x12),
        version_2(family=0x31),
        version_2(family=0x10),
        version_2(length=11),
        version_2(source="::1", length=35),
        version_2(length=MOST_BYTES),
        version_2(vectors=b"\xea"),
        version_2(vectors=b"\xea\x00\x02x"),
    ],
)
def test_whatever_is_not_right_is_refused(data: bytes) -> None:
    with pytest.raises(BadProxyHeader):
        read(data)


def test_the_longest_line_there_can_be_is_taken() -> None:
    full = "ffff:" * 7 + "ffff"
    assert read(version_1(full, 65535, full, 65535)) == (Origin((full, 65535)), 104)
    longest = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert (read(longest), len(longest)) == ((Origin(None), 107), 107)


def test_an_ipv4_address_in_an_ipv6_one_is_that_ipv4_address() -> None:
    meant = Origin(("192.0.2.9", 7))
    assert read(version_1("::ffff:192.0.2.9", 7))[0] == meant
    assert read(version_2("::ffff:192.0.2.9", 7))[0] == meant


def test_it_is_refused_with_the_first_byte_that_is_wrong() -> None:
    """So that a client without a header hears of it at once, and not at the deadline."""
    for beginning in (b"\r\n\r\n\x01", b"PROXZ", b"G"):
        with pytest.raises(BadProxyHeader):
            read(beginning)
