"""Who may do what over TCP: who shows a token, and without one the user who runs the manager.

Every user of the machine reaches its loopback ports, so without a token the kernel has to say which user it
is that asks. A web page anywhere can make that user's browser send requests to `localhost`; two checks keep
them out (`CrossSiteGuard`):

* `Host` must name this machine. A page whose own domain points at 127.0.0.1 (DNS rebinding) cannot fake it.
* `Origin` must be ours where a browser sends one, and `Sec-Fetch-Site` must not say that another site asks.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attrs import frozen
from werkzeug.datastructures import Headers

from ..errors import SessionNotFound
from ..models import Token, utc_now
from ..websocket.refusal import RefusalCode
from .problems import HttpProblem

if TYPE_CHECKING:
    from ..manager import AgentManager

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="agentmgr"'}
_ROOT = 0
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
#: What proxies add. The kernel then says who runs the proxy, and not who asks.
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


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


class Access:
    """Judges requests of one TCP listener. `local`: only this machine can reach it."""

    def __init__(self, manager: AgentManager, guard: CrossSiteGuard, *, local: bool) -> None:
        self._manager = manager
        self._guard = guard
        self._local = local

    def check(
        self, headers: Headers, scope: str | None, *, peer_uid: int | None, navigates: bool
    ) -> Token | None:
        """Whose request it is, where it comes with a token.

        Raises `HttpProblem`: 401 without a good token where one is needed, 403 where it does not suffice.

        `scope` is what the operation needs; None: nothing, it is public. `peer_uid` is the user at the other
        end of the connection, None where the kernel does not say.
        """
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            return self._check_token(key.strip(), scope)
        if scope is not None:
            if self._manager.get_token_policy().api or not self._local:
                raise _unauthorized("A token is needed")
            _check_peer(headers, peer_uid)
        if self._local:
            # Without a token, what a web page of elsewhere makes a browser ask is not the user's own wish.
            self._guard.check(headers, navigates=navigates)
        return None

    def _check_token(self, key: str, scope: str | None) -> Token:
        token = self._manager.find_token(key)
        now = utc_now()
        if token is None or token.expired(now):
            raise HttpProblem(
                401, RefusalCode.UNAUTHORIZED, "This token is not known, or has expired.", headers=_CHALLENGE
            )
        if scope == "sessions" and not token.allows(scope, now):
            # It learns nothing of sessions, not even whether there is one.
            raise SessionNotFound("no session has this id, or this token does not have the scope 'sessions'")
        if scope is not None and not _allows(token, scope, now):
            wanted = " or ".join(map(repr, scope.split()))
            raise HttpProblem(403, RefusalCode.FORBIDDEN, f"This token does not have the scope {wanted}.")
        return token


def _check_peer(headers: Headers, uid: int | None) -> None:
    """Raises `HttpProblem` unless the user who runs this manager, or root, sent the request."""
    forwarder = next((name for name in _FORWARDED if name in headers), None)
    if forwarder is not None:
        raise _unauthorized(f"A proxy forwards this request ({forwarder}), so a token is needed")
    if uid is None:
        raise _unauthorized("The system does not say which user asks, so a token is needed")
    if uid not in (_ROOT, os.geteuid()):
        raise _unauthorized(
            f"Without a token only the user who runs this manager (uid {os.geteuid()}) and root may ask, "
            f"and this is uid {uid}"
        )


def _unauthorized(reason: str) -> HttpProblem:
    detail = (
        f"{reason}: send `Authorization: Bearer KEY`; "
        "the manager's user makes a key with `agentmgr tokens create NAME --scope read` (or admin)."
    )
    return HttpProblem(401, RefusalCode.UNAUTHORIZED, detail, headers=_CHALLENGE)


def _allows(token: Token, scope: str, now: datetime) -> bool:
    if scope == "connect":  # to one service is enough: the operation sees to it that it is that one
        return token.connects_to(now) != frozenset()
    return any(token.allows(one, now) for one in scope.split())
