"""Which client came in by which token: when the token ends, so does what it opened."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import trio

from ..models import utc_now
from ..protocol import POLICY
from .access import Identity, unauthorized
from .connections import LiveConnection
from .tunnel import Ending

_REVOKED = Ending("gateway", POLICY, "the token that opened this connection was revoked")


class TokenScope:
    """One client, from when it showed its token, or a ticket of it, to the end of its connection."""

    __slots__ = ("_connection", "_scope", "_valid_until")

    def __init__(self, valid_until: float) -> None:
        self._valid_until = valid_until
        self._scope = trio.CancelScope(deadline=valid_until)  # while it has no connection
        self._connection: LiveConnection | None = None

    def opened(self, connection: LiveConnection) -> None:
        """From now on the end of its token ends that connection. Raises `Refusal` if it has ended already."""
        if self._scope.cancel_called:
            raise _ended()
        self._scope.deadline = math.inf
        self._connection, connection.valid_until = connection, self._valid_until

    def revoke(self) -> None:
        if self._connection is None:
            self._scope.cancel()
        else:
            self._connection.tunnel.end(_REVOKED)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Raises `Refusal` when its token ends before it has a connection."""
        with self._scope:
            yield
        if self._scope.cancelled_caught:
            raise _ended()


class TokenScopes:
    """All clients of one gateway that a token let in."""

    def __init__(self) -> None:
        self._by_token: dict[str, set[TokenScope]] = {}
        self._valid: Collection[str] | None = None  # None: it has not been said

    def keep(self, valid: Collection[str]) -> None:
        """Ends what other tokens opened than those with these ids, now and later."""
        self._valid = valid
        for token_id in self._by_token.keys() - set(valid):
            for scope in tuple(self._by_token[token_id]):
                scope.revoke()

    @contextmanager
    def open(self, identity: Identity | None) -> Iterator[TokenScope | None]:
        """Knows the client inside the block, where it came in by a token; None where it did not.

        Raises `Refusal` when its token ends before it has a connection.
        """
        if identity is None or identity.token_id is None:
            yield None
            return
        lifetime_s = math.inf
        if identity.expires_at is not None:
            lifetime_s = (identity.expires_at - utc_now()).total_seconds()
        scope = TokenScope(trio.current_time() + lifetime_s)
        peers = self._by_token.setdefault(identity.token_id, set())
        peers.add(scope)
        if self._valid is not None and identity.token_id not in self._valid:
            scope.revoke()  # since it was looked up
        try:
            with scope.waiting():
                yield scope
        finally:
            peers.remove(scope)
            if not peers:
                del self._by_token[identity.token_id]


def _ended() -> Exception:
    return unauthorized("this token was revoked, or has expired")
