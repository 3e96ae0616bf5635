"""Tickets: keys that open something once, soon."""

from __future__ import annotations

import secrets
from collections import Counter
from hashlib import sha256
from typing import Generic, Protocol, TypeVar

from ..errors import TooManyTickets

_PREFIX = "agt_"  #: so that scanners for leaked secrets can know one
_MOST = 1000  #: outstanding at once, for each token: one that is used carelessly leaves the others room


class Claimed(Protocol):
    """What a ticket stands for."""

    @property
    def token_id(self) -> str | None:
        """Of the token that it was made with."""

    @property
    def expires_at(self) -> float:
        """On the clock of trio."""


C = TypeVar("C", bound=Claimed)


class Tickets(Generic[C]):
    """Keeps the outstanding tickets, in memory: with their manager's process they end too."""

    def __init__(self) -> None:
        # By digest: a look-up's timing then says something of digests alone, which a client cannot choose.
        self._claims: dict[bytes, C] = {}
        self._outstanding: Counter[str | None] = Counter()

    def issue(self, claim: C, now: float) -> str:
        """A ticket, which is kept nowhere. Raises `TooManyTickets`."""
        if self._outstanding[claim.token_id] >= _MOST:
            self._sweep(now)
            if self._outstanding[claim.token_id] >= _MOST:
                raise TooManyTickets(f"{_MOST} tickets of this token wait to be used; use them, or wait")
        ticket = _PREFIX + secrets.token_urlsafe(32)
        self._claims[_digest(ticket)] = claim
        self._outstanding[claim.token_id] += 1
        return ticket

    def redeem(self, ticket: str, now: float) -> C | None:
        """What it stands for, this once; None when it is not known, was used, or came too late."""
        claim = self._drop(_digest(ticket))
        return claim if claim is not None and now < claim.expires_at else None

    def _sweep(self, now: float) -> None:
        for digest in [digest for digest, claim in self._claims.items() if now >= claim.expires_at]:
            self._drop(digest)

    def _drop(self, digest: bytes) -> C | None:
        claim = self._claims.pop(digest, None)
        if claim is not None:
            self._outstanding[claim.token_id] -= 1
        return claim


def _digest(ticket: str) -> bytes:
    return sha256(ticket.encode("utf-8", "surrogatepass")).digest()
