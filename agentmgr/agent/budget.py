"""One budget of bytes for all that clients make a host keep.

Each holder, a session or a connection, has a `Share` and says what it holds now, not what has come or gone:
so no sum drifts, and none is ever negative. What a client asks for is refused with `host_full` when
`make_room` finds no room for it. Room is made in the order of `Offer`, and in each by who grew longest ago.

A client that has gone may come back, and what it has sent is to be answered till then, unless its service
cancels turns on disconnect. So messages that wait behind a running turn stay, and count; only where the host
has no other room left are they given up, and the client learns which they were.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from attrs import define, field

from ..protocol import ErrorCode
from .incoming import BadInput


class Offer(IntEnum):
    """What the holder of a share gives up for others. A running turn gives up nothing."""

    ABSENT = 0  #: the history and the replay of a session whose client is away and that does nothing
    DELIVERED = 1  #: of a session that does nothing, the replay of what its connected client has been sent
    WAITING = 2  #: messages that wait behind a running turn, while their client is away


class Budget:
    """How much all shares hold."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._offers: tuple[dict[Share, None], ...] = tuple({} for _ in Offer)

    def share(self, give_up: Callable[[], None] | None = None) -> Share:
        """`give_up` gives up what was offered; the share has to hold no more after it than before."""
        return Share(self, give_up or _nothing)

    def make_room(self, size: int = 0) -> bool:
        """Whether `size` more fits, after what others had to give up for it."""
        for offers in self._offers:
            while offers and self.used + size > self.limit:
                share = next(iter(offers))
                del offers[share]
                share.give_up()
        return self.used + size <= self.limit

    def require(self, size: int) -> None:
        """Raises `BadInput`: `host_full`."""
        if not self.make_room(size):
            raise BadInput(
                ErrorCode.HOST_FULL,
                f"this agent keeps as much for its clients as it may ({self.limit / 2**20:g} MiB); "
                "send it again later, when other turns and sessions have ended",
            )


@define(eq=False)
class Share:
    """What one holder has of a budget."""

    budget: Budget
    give_up: Callable[[], None]
    size: int = field(default=0, init=False)
    _offered: Offer | None = field(default=None, init=False)

    def hold(self, size: int) -> None:
        """It holds `size` bytes now; 0 at its end."""
        grows = size > self.size
        self.budget.used += size - self.size
        self.size = size
        if grows and self._offered is not None:
            self.budget._offers[self._offered][self] = None

    def offer(self, offered: Offer | None) -> None:
        """What it gives up from now on; None: nothing."""
        if self._offered is not None and self._offered is not offered:
            self.budget._offers[self._offered].pop(self, None)
        self._offered = offered
        if offered is not None:
            self.budget._offers[offered][self] = None  # a share that is in this order already keeps its place


def _nothing() -> None:
    """Gives up nothing."""
