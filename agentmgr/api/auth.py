"""Who may do what over TCP: who shows a token, and without one the user who runs the manager.

Every user of the machine reaches its loopback ports, so without a token the kernel has to say which user it
is that asks.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING

from werkzeug.datastructures import Headers

from ..errors import SessionNotFound
from ..models import Token, utc_now
from ..websocket.refusal import RefusalCode
from .cross_site import CrossSiteGuard
from .problems import HttpProblem

if TYPE_CHECKING:
    from ..manager import AgentManager

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="agentmgr"'}
_ROOT = 0
#: What proxies add. The kernel then says who runs the proxy, and not who asks.
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


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
            # Of somebody else's session it learns nothing, not even whether there is one.
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
