"""A client on its way to an instance, and what it gets there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define, field, frozen

from ..core.request import ClientRequest
from ..core.routing import Backend, Pool


@frozen
class Seat:
    """A seat at an instance, taken before the gateway connects to it."""

    backend: Backend
    pool: Pool


@define(eq=False)
class Visit:
    """A client on its way to a seat."""

    request: ClientRequest
    services: frozenset[str] | None = None  #: the names it may connect to; None: all
    tried: set[str] = field(factory=set)  #: ids of the instances that failed it
    blamed: set[str] = field(factory=set)  #: those of them whose failure was counted
    home: str | None = None  #: the one that holds the client's session, once it has failed it
    given_up: set[str] = field(factory=set)  #: those that do not hold its session any more, and end soon
    left: Callable[[], Awaitable[None]] = trio.sleep_forever  #: returns when the client has gone
    node_id: str | None = None  #: of the only machine that can go on with a connection; None: any
    sought: str | None = None  #: the instance that holds what a resumed connection goes on with
    patience_s: float | None = None  #: how long it waits for a seat; None: as long as the gateway says
    starts_within: float = 0.0  #: how long what it waits for may take to start; 0: nothing starts for it
    preferred: str | None = None  #: the instance whose seat has to be asked for, or was granted
