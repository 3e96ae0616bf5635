"""Who may do what over TCP: by token, or on this machine without one where the API asks for none."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from werkzeug.datastructures import Headers

from ..models import Token, utc_now
from .guard import Guard
from .problems import HttpProblem

if TYPE_CHECKING:
    from ..manager import AgentManager

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="agentmgr"'}


class Access:
    """Judges requests of one TCP listener. `local`: only this machine can reach it."""

    def __init__(self, manager: AgentManager, guard: Guard, *, local: bool) -> None:
        self._manager = manager
        self._guard = guard
        self._local = local

    def check(self, headers: Headers, scope: str | None, *, navigates: bool) -> Token | None:
        """Whose request it is, where it comes with a token.

        Raises `HttpProblem`: 401 without a good token where one is needed, 403 where it does not suffice.

        `scope` is what the operation needs; None: nothing, it is public.
        """
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            return self._check_token(key.strip(), scope)
        if scope is not None and (self._manager.get_token_policy().api or not self._local):
            raise HttpProblem(
                401,
                "unauthorized",
                "A token is needed: send `Authorization: Bearer KEY`; `agentmgr tokens create` makes one.",
                headers=_CHALLENGE,
            )
        if self._local:
            # Nobody proved anything, so the request must be this machine's own.
            self._guard.check(headers, navigates=navigates)
        return None

    def _check_token(self, key: str, scope: str | None) -> Token:
        token = self._manager.find_token(key)
        now = utc_now()
        if token is None or token.expired(now):
            raise HttpProblem(
                401, "unauthorized", "This token is not known, or has expired.", headers=_CHALLENGE
            )
        if scope is not None and not _allows(token, scope, now):
            raise HttpProblem(403, "forbidden", f"This token does not have the scope {scope!r}.")
        return token


def _allows(token: Token, scope: str, now: datetime) -> bool:
    if scope == "connect":  # to one service is enough: the operation sees to it that it is that one
        return token.connects_to(now) != frozenset()
    return token.allows(scope, now)
