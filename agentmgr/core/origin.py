"""Which web pages may connect. A browser sends an `Origin` with each WebSocket handshake; programs do not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from .loopback import is_loopback

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+/?", re.IGNORECASE)


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
