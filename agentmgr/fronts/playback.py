"""A turn of a session, read again from its journal and then as it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import define, field

from .. import protocol
from ..protocol import NoticeCode
from .door import Door, DoorClosed
from .problem import Problem
from .session import code_of, past


@define(eq=False)
class Playback:
    """Reads the events of one turn. `past`: those until now; `events`: what comes.

    Turns follow one another, and each ends with an event of its own `step_id`: what is between two such ends
    is of one turn.
    """

    door: Door
    session_id: str
    step_id: str
    after_seq: int  #: the turn begins behind it; others may do so before
    found: bool = False  #: the turn has begun
    over: bool = False
    end_seq: int = 0  #: of the event that ended it
    later: list[str] = field(factory=list)  #: the steps of turns that ended after it
    busy: bool = False  #: when it was taken up, a turn ran
    last_seq: int = 0  #: of the session, then
    _held: list[dict[str, Any]] = field(factory=list)  # of the turn, as it seems, while that is not sure

    async def past(self) -> list[dict[str, Any]]:
        """The events of the turn until now. Raises `NotTaken`, other `Problem`s."""
        known = await past(self.door, self.session_id, self.after_seq)
        if known.has_gap:
            raise _gone()
        self.busy, self.last_seq = known.busy, known.last_seq
        mine = [own for event in known.events for own in self._sorted(event)]
        if self.busy and not self.found:  # it runs, whatever its first event will be
            self.found, mine, self._held = True, mine + self._held, []
        return mine

    async def events(self) -> list[dict[str, Any]]:
        """Those that have come since, at least one; none any more when the turn is over. Raises `Problem`."""
        try:
            while not self.over:
                mine = [
                    own
                    for event in await self.door.receive()
                    if event.get("session_id") == self.session_id
                    for own in self._sorted(event)
                ]
                if mine:
                    return mine
        except DoorClosed as closed:
            raise closed.amid_a_turn from None
        return []

    def _sorted(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Those that are known to be of the turn, now that this one has come. Raises `Problem`."""
        name = event["event"]
        if name == protocol.NOTICE and code_of(event) == NoticeCode.GAP:
            raise _gone()
        if (seq := event.get("seq")) is None:
            return
        ends = name in protocol.TURN_ENDS or name == protocol.SESSION_END
        if self.over:
            self.later += [str(event.get("step_id"))] if ends else []
        elif self.found or event.get("step_id") == self.step_id:
            self.found, self.over = True, ends
            self.end_seq = int(seq) if ends else 0
            yield from self._held
            yield event
            self._held = []
        elif ends:
            self._held = []  # it was of the turn before
        else:
            self._held.append(event)


def _gone() -> Problem:
    return Problem(410, "events_gone", "The agent's host does not hold the events any more.")
