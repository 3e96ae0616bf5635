"""Hosts and ports: how they are written, which can only mean this machine, and which web pages may connect.

A browser sends an `Origin` with each WebSocket handshake; programs do not.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")  #: the usual names of this machine for itself

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+/?", re.IGNORECASE)


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


def is_wildcard(host: str) -> bool:
    """Whether a listener at `host` listens on every address."""
    return host in ("", "0.0.0.0", "::")


def is_origin(text: str) -> bool:
    """Whether it may stand in an allow-list: a scheme and a host, or `*`, or `null`."""
    return text in ("*", "null") or _ORIGIN.fullmatch(text) is not None


def origins(texts: Iterable[str] | None) -> frozenset[str] | None:
    """An allow-list, ready for `origin_allowed`: `*` allows all, None the pages of this machine."""
    return None if texts is None else frozenset(text.lower().rstrip("/") for text in texts)


def origin_allowed(origin: str, allowed: frozenset[str] | None) -> bool:
    """Not judged by `Host`: with DNS rebinding a stranger's page has its own name in both."""
    origin = origin.lower()
    return not origin or (_is_local(origin) if allowed is None else bool(allowed & {origin, "*"}))


def host_is_loopback(host: str) -> bool:
    """Whether a `Host` header, with or without a port, can only mean this machine."""
    return _is_local(f"//{host}")


def _is_local(address: str) -> bool:
    try:
        return is_loopback(urlsplit(address).hostname or "")
    except ValueError:
        return False
