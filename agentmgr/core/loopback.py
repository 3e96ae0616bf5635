"""Hosts and ports: how they are written, and which can only mean this machine."""

from __future__ import annotations

import ipaddress


def authority(host: str, port: int) -> str:
    """As in a URL and in `Host`: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """`host` is a name or an address; IPv6 may stand in brackets. For names see RFC 6761, section 6.3."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
