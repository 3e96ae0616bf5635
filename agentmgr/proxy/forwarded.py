"""The client's address, and the headers by which its instance learns it.

Forwarding headers are believed from trusted proxies only; those of any other peer are dropped, in every
spelling that a backend could confuse with the real ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from attrs import frozen

from ..core.gateway_headers import (
    CONNECTION_HEADER,
    IDENTITY_HEADER,
    from_gateway,
    from_proxy,
    without_login,
)
from ..websocket.head import Fields, RequestHead

Networks = Sequence[IPv4Network | IPv6Network]


@frozen
class Peer:
    """The peer, as far as the connection itself shows it."""

    address: str
    port: int
    secure: bool = False  #: a proxy took its TLS off
    anonymous: bool = False  #: a proxy passed it on and did not say from where: it cannot vouch for others


def networks(texts: Iterable[str]) -> Networks:
    """Raises `ValueError` for what is not an address or network."""
    return tuple(ip_network(text, strict=False) for text in texts)


def within(address: str, trusted: Networks) -> bool:
    """Is the address in one of these networks?"""
    return bool(trusted) and any(ip_address(address) in network for network in trusted)


def client_address(peer: str, head: RequestHead, trusted: Networks) -> str:
    """The client's address: the last one of `X-Forwarded-For` that no trusted proxy could have made up."""
    if not within(peer, trusted):
        return peer
    client = peer
    for hop in reversed(head.by_name.get("x-forwarded-for", "").split(",")):
        try:
            address = str(ip_address(hop.strip()))
        except ValueError:
            break
        client = address
        if not within(address, trusted):
            break
    return client


def backend_fields(
    head: RequestHead,
    *,
    peer: str,
    trusted: Networks,
    secure: bool,
    connection_id: str,
    identity: str | None = None,
) -> Fields:
    """The header fields for the instance; `identity` is the name that the client has proved to have."""
    vouched = within(peer, trusted)
    believed = head.by_name if vouched else {}
    return (
        *(
            (name, left)
            for name, value in head.end_to_end
            if (not from_gateway(name) or (vouched and from_proxy(name)))
            and (left := without_login(value) if name.lower() == "cookie" else value)
        ),
        ("X-Forwarded-For", f"{hops}, {peer}" if (hops := believed.get("x-forwarded-for")) else peer),
        ("X-Forwarded-Proto", believed.get("x-forwarded-proto", "https" if secure else "http")),
        ("X-Forwarded-Host", believed.get("x-forwarded-host", head.by_name["host"])),
        ("X-Request-Id", believed.get("x-request-id", connection_id)),
        (CONNECTION_HEADER, connection_id),
        *([(IDENTITY_HEADER, identity)] if identity is not None else []),
    )
