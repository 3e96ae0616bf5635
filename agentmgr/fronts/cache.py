"""What a gateway remembers between the requests of a conversation: a cache, which it can do without.

It has the branch of a session that was used last, and the turns that have asked a question. These are parked
with their door open, since to the agent's host a client that leaves may mean that the turn is not wanted any
more. Another gateway, or this one after a restart, gets both from the host (`keyed`).

A client without a key can be found again by nothing but what it knows of the conversation, and only here.
So its questions are bounded, in number and in time, and a yes that comes too late, for a question that is
known to be closed, is an error: as a message it would be taken for something else. Any other question keeps
its seat for so long only, and is then found by asking the host.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import trio
from attrs import define, field, frozen

from .. import protocol
from .door import DoorClosed
from .prompt import ChatMessage
from .turn import Turn, answer

MOST_REMEMBERED = 10_000
MOST_BRANCHES = 16
"""Looked at; a history that none of them has gets a branch of a random name, or is refused."""
MOST_PARKED = 1000
"""Doors, each with a seat at an instance."""
MOST_OF_A_CLIENT = 16
"""Of one that names no conversation."""
MOST_PATIENCE_S = 900.0
"""That a question keeps its seat, where the agent's host would wait longer for its answer. Of a client that
names no conversation it is then answered with no; each other one goes on without its door."""
_TOO_LATE = "no answer came in time, which means no"
_MOST_HELD = 1000  # events of a turn that goes on beside its question


@frozen
class Branch:
    """Where a conversation went on last."""

    number: int
    digest: str  #: of all that the client knew after it


@define(eq=False)
class ParkedTurn:
    """A turn that has asked, and waits for the answer with its door open; or one that goes on to its end."""

    turn: Turn
    question: str | None  #: its `step_id`; None: the turn is not taken up again, and its events are not kept
    client: str = ""  #: of one that names no conversation: it has so many of them at most, and so long
    scope: trio.CancelScope = field(factory=trio.CancelScope)

    def now_asks(self, asks: bool) -> None:
        """Its seat is for its work; while it waits for a person, it has one for so long only."""
        self.scope.deadline = trio.current_time() + MOST_PATIENCE_S if asks else math.inf


class ConversationCache:
    def __init__(self) -> None:
        self._branches: OrderedDict[Hashable, Branch] = OrderedDict()
        self._parked: OrderedDict[Hashable, ParkedTurn] = OrderedDict()
        self._closed: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        """How many turns wait."""
        return len(self._parked)

    def last_branch(self, place: Hashable) -> Branch | None:
        return self._branches.get(place)

    def branches(self, place: Hashable) -> Iterator[int]:
        """The numbers under which a session may have branches, the last one used first."""
        known = self._branches.get(place)
        last = 1 if known is None else known.number
        yield last
        yield from (number for number in range(1, MOST_BRANCHES + 1) if number != last)

    def remember(self, place: Hashable, branch: Branch) -> None:
        self._branches[place] = branch
        self._branches.move_to_end(place)
        if len(self._branches) > MOST_REMEMBERED:
            self._branches.popitem(last=False)

    def park(self, place: Hashable, parked: ParkedTurn, nursery: trio.Nursery) -> None:
        """Until the question is answered, here or elsewhere, or too many others wait."""
        self._drop(place)
        self._closed.pop(place, None)
        if len(self._parked) >= MOST_PARKED:
            self._drop(next(iter(self._parked)))
        if parked.question is not None:
            parked.now_asks(True)
        if parked.client:
            others = [at for at, other in self._parked.items() if other.client == parked.client]
            if len(others) >= MOST_OF_A_CLIENT:
                self._drop(others[0])
        self._parked[place] = parked
        nursery.start_soon(self._watch, place, parked)

    def was_closed(self, place: Hashable) -> bool:
        """Whether a turn of a client without a key waited there, and is not to be had any more."""
        return place in self._closed

    def take(self, place: Hashable) -> ParkedTurn | None:
        """The turn that waits there; its door is the caller's from now on."""
        if (parked := self._parked.pop(place, None)) is not None:
            parked.turn.parked = False
            parked.scope.cancel()
        return parked

    def _drop(self, place: Hashable) -> None:
        if (parked := self.take(place)) is not None:
            self._leave(place, parked)

    def _leave(self, place: Hashable, parked: ParkedTurn) -> None:
        parked.turn.door.leave()
        if parked.client:
            self._closed[place] = None
            if len(self._closed) > MOST_REMEMBERED:
                self._closed.popitem(last=False)

    async def _watch(self, place: Hashable, parked: ParkedTurn) -> None:
        turn = parked.turn
        try:
            with parked.scope:
                while not _is_settled(parked, came := await turn.door.receive()):
                    if parked.question is None:
                        parked.now_asks(came[-1]["event"] == protocol.USER_CONFIRM)
                    if parked.question is not None and turn.hold(came) > _MOST_HELD:
                        break
            if self._parked.get(place) is parked and parked.scope.cancelled_caught and parked.client:
                assert parked.question is not None
                await answer(turn, parked.question, ChatMessage("user", _TOO_LATE))
        except DoorClosed:
            pass
        finally:
            if self._parked.get(place) is parked:  # else it was taken, with its door
                del self._parked[place]
                self._leave(place, parked)


def _is_settled(parked: ParkedTurn, came: list[dict[str, Any]]) -> bool:
    """Whether the question is open no more, or the turn has ended."""
    return any(_settles(event, parked) for event in came)


def _settles(event: Mapping[str, Any], parked: ParkedTurn) -> bool:
    if event["event"] == protocol.NOTICE:
        return parked.question is not None and event.get("step_id") == parked.question
    ends = event["event"] in protocol.TURN_ENDS or event["event"] == protocol.SESSION_END
    return ends and event.get("session_id") == parked.turn.session_id
