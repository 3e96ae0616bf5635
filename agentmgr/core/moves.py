"""Where the sessions of a service are, once journals have moved from node to node.

The rules:

* A session's id names the node that it was begun on, and the generation of the journal of its service there.
* When a journal moves away, all that is in it does: what was begun there, and what had come there before. The
  next journal of that node is of the next generation.
* So it is known of each node which generations of it are where. What moves on changes that entry: no chain of
  entries arises.
* Nothing of the service runs on a node whose journal is moving: nothing is begun there meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from attrs import evolve, frozen


class MoveStep(StrEnum):
    COPYING = "copying"  #: another node may still be chosen for it
    ARRIVING = "arriving"  #: that node has a copy, and may have put some of it into its own journal
    LEAVING = "leaving"  #: it has arrived, and is to be removed where it was


@frozen
class JournalMove:
    """A journal on its way."""

    move_id: str
    to: str  #: a node id
    step: MoveStep = MoveStep.COPYING


@frozen
class Span:
    """Generations of one node, up to the next span."""

    before: int  #: those before this one
    at: str  #: the id of the node that has them


@frozen
class JournalPlace:
    """What is to be known of the journals that one node has had, of one service."""

    service_id: str
    node_id: str  #: as ids of sessions name it; "" is the manager's own machine
    generation: int = 0  #: of what is begun there now
    spans: tuple[Span, ...] = ()  #: of all generations before, the oldest first
    move: JournalMove | None = None  #: of what it has now


@frozen
class Moved:
    """The same, for those who lead clients."""

    spans: tuple[Span, ...] = ()
    moving: bool = False  #: what the node has now is on its way, or soon will be


Places = Mapping[str, JournalPlace]  #: of one service, by node id


def where(moved: Mapping[str, Moved], node_id: str, generation: int | None) -> tuple[str, bool]:
    """The node that has a session of that node and generation now, and whether it is on its way from there.

    `moved`: of its service, by node id. `generation`: None: what that node has now.
    """
    found = moved.get(node_id)
    if found is not None and generation is not None:
        for span in found.spans:
            if generation < span.before:
                node_id, found = span.at, moved.get(span.at)
                break
    return node_id, found is not None and found.moving


def arrived(places: Places, node_id: str) -> dict[str, JournalPlace]:
    """The entries that change when the journal of that node has arrived where it was moved to."""
    left = places[node_id]
    assert left.move is not None
    to, changed = left.move.to, dict[str, JournalPlace]()
    for other, place in places.items():
        spans = place.spans
        if other == node_id:
            spans = (*spans, Span(place.generation + 1, node_id))  # goes with the others, below
        if any(span.at == node_id for span in spans):
            changed[other] = evolve(
                place, spans=_joined(evolve(s, at=to) if s.at == node_id else s for s in spans)
            )
    move = evolve(left.move, step=MoveStep.LEAVING)
    return changed | {node_id: evolve(changed[node_id], generation=left.generation + 1, move=move)}


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Neighbours on one node are one span."""
    found: list[Span] = []
    for span in spans:
        if found and found[-1].at == span.at:
            found.pop()
        found.append(span)
    return tuple(found)
