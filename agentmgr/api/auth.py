"""Who may do what over TCP: who shows a token, and without one the user who runs the manager.

Every user of the machine reaches its loopback ports, so without a token the kernel has to say which user it
is that asks. A web page anywhere can make that user's browser send requests to `localhost`; two checks keep
them out (`CrossSiteGuard`):

* `Host` must name this machine. A page whose own domain points at 127.0.0.1 (DNS rebinding) cannot fake it.
* `Origin` must be ours where a browser sends one, and `Sec-Fetch-Site` must not say that another site asks.

A browser that has logged in to the console shows the key of its token in a cookie. It may do that whichever
page asks, so a change needs more (`check_own_page`): an `Origin` that is ours, and a header that only our
page can set.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attrs import frozen
from werkzeug.datastructures import Headers
from werkzeug.http import dump_cookie, parse_cookie

from ..core.gateway_headers import LOGIN_COOKIE
from ..core.hosts import LOOPBACK
from ..errors import SessionNotFound
from ..models import Token, utc_now
from ..websocket.refusal import RefusalCode
from .problems import HttpProblem

if TYPE_CHECKING:
    from ..manager import AgentManager

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="agentmgr"'}
_ROOT = 0
_READING = frozenset({"GET", "HEAD"})
OWN_PAGE = "X-Agentmgr-Console"  #: a header: other pages may set it only where we allowed that, and we do not
#: What proxies add. The kernel then says who runs the proxy, and not who asks.
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


@frozen
class CrossSiteGuard:
    """Refuses requests that did not come from this machine's own user."""

    hosts: Collection[str] = LOOPBACK  #: what may stand in `Host`, without the port
    origins: Collection[str] = ()  #: pages of other origins that may ask, as in `https://console.example`

    def check(self, headers: Headers, *, navigates: bool) -> None:
        """Raises `HttpProblem`. `navigates`: it only shows a page, which a link from anywhere may do."""
        self.check_host(headers.get("Host", ""))
        self.check_page(headers, navigates=navigates)

    def check_host(self, host: str) -> None:
        """Raises `HttpProblem`."""
        if not self._known(host):
            raise HttpProblem(
                403,
                RefusalCode.HOST_NOT_ALLOWED,
                f"Host {host!r} is not this machine; ask http://localhost, or use tokens for other names.",
            )

    def check_page(self, headers: Headers, *, navigates: bool) -> None:
        """Raises `HttpProblem`."""
        origin = headers.get("Origin")
        if origin is not None:
            if origin not in self.origins and not _is_own(origin, headers):
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


def _is_own(origin: str, headers: Headers) -> bool:
    """Whether a page of the very server that is asked sends it; which scheme a proxy before us speaks is not
    known here.
    """
    return origin.partition("://")[2].lower() == headers.get("Host", "").lower()


def check_own_page(headers: Headers) -> None:
    """Raises `HttpProblem` unless the console's page sent this request, from where it was loaded."""
    origin = headers.get("Origin")
    if origin is None or not _is_own(origin, headers):
        raise HttpProblem(
            403,
            RefusalCode.ORIGIN_NOT_ALLOWED,
            "With the console's cookie only its own page may change something, not one of "
            f"{origin or 'no known origin'}. Programs send `Authorization: Bearer KEY`; proxies keep `Host`.",
        )
    if headers.get(OWN_PAGE) != "1":
        raise HttpProblem(
            403,
            RefusalCode.FORBIDDEN,
            f"With the console's cookie a change needs the header `{OWN_PAGE}: 1`; "
            "programs send `Authorization: Bearer KEY`.",
        )


def login_cookie(headers: Headers, key: str, life_s: float) -> str:
    """`Set-Cookie` for the browser that sent these headers, to log it in; with no key, out."""
    return dump_cookie(
        _cookie_name(headers),
        key,
        max_age=int(life_s) if key else 0,
        httponly=True,
        secure=headers.get("Origin", "").startswith("https:"),
        samesite="Strict",
        sync_expires=False,
    )


def _cookie_name(headers: Headers) -> str:
    """Browsers send the cookies of a host to each of its ports, so that the port is a part of the name."""
    try:
        port = urlsplit(f"//{headers.get('Host', '')}").port
    except ValueError:
        port = None
    return LOGIN_COOKIE if port is None else f"{LOGIN_COOKIE}_{port}"


class Access:
    """Judges requests of one TCP listener. `local`: only this machine can reach it."""

    def __init__(self, manager: AgentManager, guard: CrossSiteGuard, *, local: bool) -> None:
        self._manager = manager
        self._guard = guard
        self._local = local

    @property
    def needs_token(self) -> bool:
        return self._manager.get_token_policy().api or not self._local

    def lets_in(self, headers: Headers, peer_uid: int | None) -> bool:
        """Whether a request needs no token, as it is of this machine's own user."""
        if self.needs_token:
            return False
        try:
            _check_peer(headers, peer_uid)
        except HttpProblem:
            return False
        return True

    def check(
        self, headers: Headers, scope: str | None, *, method: str, peer_uid: int | None, navigates: bool
    ) -> Token | None:
        """Whose request it is, where it comes with a token, in its header or by a login to the console.

        Raises `HttpProblem`: 401 without a good token where one is needed, 403 where it does not suffice.

        `scope` is what the operation needs; None: nothing, it is public. `peer_uid` is the user at the other
        end of the connection, None where the kernel does not say.
        """
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            if (token := self._valid(key.strip())) is None:
                unknown = "This token is not known, or has expired."
                raise HttpProblem(401, RefusalCode.UNAUTHORIZED, unknown, headers=_CHALLENGE)
            return _check_scope(token, scope)
        login = parse_cookie(headers.get("Cookie")).get(_cookie_name(headers))
        if login and (token := self._valid(login)) is not None:
            self._guard.check_page(headers, navigates=navigates)
            if method not in _READING:
                check_own_page(headers)
            return _check_scope(token, scope)
        if scope is not None:
            if self.needs_token:
                ended = "This login has ended (`agentmgr console` makes another one), and a token is needed"
                raise _unauthorized(ended if login else "A token is needed")
            _check_peer(headers, peer_uid)
        if not self.needs_token:
            # Without a token, what a web page of elsewhere makes a browser ask is not the user's own wish.
            self._guard.check(headers, navigates=navigates)
        return None

    def _valid(self, key: str) -> Token | None:
        token = self._manager.find_token(key)
        return None if token is None or token.expired(utc_now()) else token


def _check_scope(token: Token, scope: str | None) -> Token:
    now = utc_now()
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
