"""The console's side of a manager: who may log in to it, and which pages are its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import trio
from attrs import frozen

from ..core.hosts import LOOPBACK, authority, is_loopback, is_wildcard
from ..models import Event, Ticket, Token, utc_now
from .events import EventLog
from .publisher import Publisher
from .tickets import Tickets
from .tokens import Tokens

logger = logging.getLogger(__name__)

TICKET_LIFE_S = 60.0  #: from a command that prints a link to the page that it opens
LOGIN_LIFE_S = 12 * 3600.0  #: a working day

_ROOT = 0
_MOST_PAGES = 32  #: names under which browsers have reached the console; the oldest is forgotten


@frozen
class Claim:
    """What a ticket of the console stands for."""

    scopes: frozenset[str]
    expires_at: float
    uid: int | None  #: the only user, besides root, whose programs may show it; None: any
    token_id: None = None


class Console:
    """Logs browsers in, and knows the addresses of the page, which the gateway has to let in.

    A login is a token: it is listed, revoked and enforced as any other. Its key is in a cookie of the browser
    alone.
    """

    def __init__(self, tokens: Tokens, publisher: Publisher, events: EventLog) -> None:
        self._tokens = tokens
        self._publisher = publisher
        self._events = events
        self._tickets = Tickets[Claim]()
        self._served: list[frozenset[str]] = []  # the origins of each listener of the API
        self._visited: dict[str, None] = {}  # origins by which a browser came, the oldest first

    def issue(self, scopes: Iterable[str], *, own_user: bool = False) -> Ticket:
        """A ticket for one login with these scopes.

        With `own_user` it is good for programs of the manager's own user alone, as it stands in the command
        line of a browser, which every user can read. Raises `TooManyTickets`.
        """
        now = trio.current_time()
        uid = os.geteuid() if own_user else None
        ticket = self._tickets.issue(Claim(frozenset(scopes), now + TICKET_LIFE_S, uid), now)
        return Ticket(ticket, utc_now() + timedelta(seconds=TICKET_LIFE_S))

    async def log_in(self, ticket: str, uid: int | None) -> tuple[Token, str] | None:
        """The token of a new login, and its key; None for a ticket that is not good, or not any more.

        `uid`: whose program shows it, as far as the kernel says.
        """
        claim = self._tickets.redeem(ticket, trio.current_time())
        if claim is None:
            return None
        if claim.uid is not None and uid not in (claim.uid, _ROOT):
            logger.warning("uid %s showed a ticket of the console that was made for uid %d", uid, claim.uid)
            return None
        token, key = await self._tokens.create_login(claim.scopes, LOGIN_LIFE_S)
        await self._publish()
        self._events.announce(Event("token.created", detail={"name": token.name}))
        return token, key

    @property
    def origins(self) -> frozenset[str]:
        """Of the page, as a browser sends them: it may connect to the gateway."""
        return frozenset(self._visited).union(*self._served)

    @contextmanager
    def served_at(self, host: str, port: int, *, tls: bool) -> Iterator[None]:
        """The page is there for as long as the block runs."""
        names = LOOPBACK if is_loopback(host) or is_wildcard(host) else ()
        scheme = "https" if tls else "http"
        found = frozenset(f"{scheme}://{_shown(name.lower(), port, tls)}" for name in (host, *names))
        self._served.append(found)
        self._publisher.changed()
        try:
            yield
        finally:
            self._served.remove(found)
            self._publisher.changed()

    async def visited_at(self, origin: str) -> None:
        """A browser that has logged in came by this origin: the gateway lets that in before this returns."""
        if origin not in self.origins:
            self._visited[origin] = None
            if len(self._visited) > _MOST_PAGES:
                del self._visited[next(iter(self._visited))]
            await self._publish()

    async def _publish(self) -> None:
        self._publisher.changed()
        await self._publisher.published()


def _shown(host: str, port: int, tls: bool) -> str:
    """As a browser does, which leaves out the usual port."""
    return authority(host, port).removesuffix(":443" if tls else ":80")
