"""What may be asked without a token: nothing that a web page makes a browser of this machine send.

A page anywhere can make a browser send requests to `localhost`. Two checks keep them out without a login:

* `Host` must name this machine. A page whose own domain points at 127.0.0.1 (DNS rebinding) cannot fake it.
* `Origin` must be ours where a browser sends one, and `Sec-Fetch-Site` must not say that another site asks.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from attrs import frozen
from werkzeug.datastructures import Headers

from ..websocket.refusal import RefusalCode
from .problems import HttpProblem

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@frozen
class CrossSiteGuard:
    """Refuses requests that did not come from this machine's own user."""

    hosts: Collection[str] = _LOOPBACK_NAMES  #: what may stand in `Host`, without the port
    origins: Collection[str] = ()  #: pages of other origins that may ask, as in `https://console.example`

    def check(self, headers: Headers, *, navigates: bool) -> None:
        """Raises `HttpProblem`. `navigates`: it only shows a page, which a link from anywhere may do."""
        host = headers.get("Host", "")
        if not self._known(host):
            raise HttpProblem(
                403,
                RefusalCode.HOST_NOT_ALLOWED,
                f"Host {host!r} is not this machine; ask http://localhost, or use tokens for other names.",
            )
        origin = headers.get("Origin")
        if origin is not None:
            if origin not in self.origins and origin.partition("://")[2].lower() != host.lower():
                raise HttpProblem(
                    403, RefusalCode.ORIGIN_NOT_ALLOWED, f"Pages of {origin} may not use this API."
                )
        elif headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and not navigates:
            raise HttpProblem(
                403, RefusalCode.ORIGIN_NOT_ALLOWED, "Pages of other sites may not use this API."
            )

    def _known(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            parts.port  # noqa: B018  # raises where it is no number
        except ValueError:
            return False
        return parts.hostname is not None and "@" not in host and parts.hostname in self.hosts
