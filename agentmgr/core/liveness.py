"""Which nodes of a cluster are alive, as far as their links and the engine show.

The rules, for each node:

    link                     engine says   state
    up                       alive         linked, or cordoned if an operator wants it so
    up                       gone          cordoned: it serves on, and nothing new is placed there
    down                     alive         silent: its instances are taken to live on
    down for `lost_after_s`  alive         lost: its instances are started elsewhere
    down                     gone          lost, at once

* A cluster without an engine, and nodes that are on none of its machines: it says nothing, as if alive.
* The engine's word that a node is gone makes it lost only if it is given while the link is down. One that
  came before was wrong: the node was linked then.
* A lost node stays lost until its link is up again.
* When more than half of the nodes that were linked are down together, it is the manager that is cut off.
  Then none of them is lost before the engine says so: else the manager would start all instances on the one
  node that it reaches, its own, which counts as linked.
* A daemon that has ended in order said so: its silence is no sign that the manager is cut off.
* Time in which the manager itself did not run, as its machine was paused or busy, is no silence of a node.
* That ends when at most half of these nodes are still down. They get `lost_after` from then on: nodes come
  back one after the other.
* Nodes that an earlier manager knew count as linked ones only if they ran something, or have linked since:
  one that was lost long ago is no sign that this manager is cut off.

The times are passed in: seconds of any clock that only rises.
"""

from __future__ import annotations

import math

from attrs import define, frozen

from ..models.nodes import NodeState

LOST_AFTER_S = 15.0


@frozen
class Change:
    """A node is in another state than at the last look."""

    node_id: str
    state: NodeState
    reason: str  #: for the user; "" where the state says it all


@define
class _Facts:
    since: float  #: when its link went up or down
    counts: bool  #: it was linked, and did not say that it ends, so that its silence is a sign
    linked: bool = False
    cordoned: bool = False
    gone: str = ""  #: why the engine says that it is gone
    surely_gone: bool = False  #: it says so since the link is down
    state: NodeState = NodeState.SILENT
    reason: str = ""


class Liveness:
    """What is known of all nodes. Whatever is changed, `look` says what follows."""

    def __init__(self, lost_after_s: float = LOST_AFTER_S) -> None:
        self.lost_after_s = lost_after_s
        self._nodes: dict[str, _Facts] = {}
        self._cut_off_from: set[str] = set()  # while it is cut off: the nodes that were linked before
        self._cut_off_at = math.inf
        self._looked_at = -math.inf
        self._in_touch_since = -math.inf  # the manager is not cut off since then

    def add(self, node_id: str, now: float, *, was_linked: bool, cordoned: bool = False) -> None:
        """A node whose link is not up yet. `was_linked`: it ran something under the manager before."""
        self._nodes[node_id] = _Facts(now, counts=was_linked, cordoned=cordoned)

    def remove(self, node_id: str) -> None:
        """It is forgotten."""
        self._nodes.pop(node_id, None)

    def link_up(self, node_id: str, now: float) -> None:
        facts = self._nodes[node_id]
        facts.linked, facts.counts, facts.surely_gone, facts.since = True, True, False, now

    def link_down(self, node_id: str, now: float, *, in_order: bool = False) -> None:
        """`in_order`: its daemon has said that it ends."""
        facts = self._nodes[node_id]
        facts.linked, facts.since, facts.counts = False, now, not in_order

    def was_late(self, late_s: float) -> None:
        """The manager did not run for so long, and so heard of no link that came up."""
        for facts in self._nodes.values():
            if not facts.linked:
                facts.since += late_s
        self._in_touch_since += late_s  # minus infinity stays

    def cordon(self, node_id: str, cordoned: bool) -> None:
        self._nodes[node_id].cordoned = cordoned

    def engine_says(self, node_id: str, gone: str) -> None:
        """`gone`: why it is gone; "": it is alive."""
        facts = self._nodes[node_id]
        facts.gone, facts.surely_gone = gone, bool(gone) and not facts.linked

    def state(self, node_id: str) -> NodeState:
        """As it was at the last look."""
        return self._nodes[node_id].state

    def reason(self, node_id: str) -> str:
        """Why it is in this state, for the user; "" where the state says it all."""
        return self._nodes[node_id].reason

    @property
    def cut_off(self) -> bool:
        """Whether the manager is."""
        return bool(self._cut_off_from)

    @property
    def held_back(self) -> str:
        """What does not happen because the manager is cut off, for the user; "": nothing, so far."""
        if not self._cut_off_from or self._looked_at < self._cut_off_at + self.lost_after_s:
            return ""
        down, of = len(self._down()), len(self._cut_off_from)
        return (
            f"{down} of {of} nodes are silent, so this manager seems to be cut off: their instances are not "
            "started elsewhere until most nodes are back; `agentmgr nodes forget NAME` gives one up"
        )

    def look(self, now: float) -> tuple[Change, ...]:
        """Decides the state of each node; returns what has changed since the last look."""
        self._looked_at = now
        self._judge_ourselves(now)
        changes = []
        for node_id, facts in self._nodes.items():
            before = facts.state
            facts.state, facts.reason = self._judged(facts, now)
            if facts.state is not before:
                changes.append(Change(node_id, facts.state, facts.reason))
        return tuple(changes)

    def next_look(self) -> float:
        """When the next node may be lost, or `held_back` another one, if nothing else happens before."""
        if self._cut_off_from:
            due = self._cut_off_at + self.lost_after_s
            return due if self._looked_at < due else math.inf
        silent = (self._lost_at(it) for it in self._nodes.values() if it.state is NodeState.SILENT)
        return min(silent, default=math.inf)

    def _lost_at(self, facts: _Facts) -> float:
        return max(facts.since, self._in_touch_since) + self.lost_after_s

    def _judged(self, facts: _Facts, now: float) -> tuple[NodeState, str]:
        if facts.linked:
            if facts.gone:
                return NodeState.CORDONED, f"the engine says that it is gone: {facts.gone}"
            return (NodeState.CORDONED, "by an operator") if facts.cordoned else (NodeState.LINKED, "")
        if facts.state is NodeState.LOST:
            return facts.state, facts.reason
        if facts.surely_gone:
            return NodeState.LOST, facts.gone
        if not self._cut_off_from and now >= self._lost_at(facts):
            return NodeState.LOST, f"silent for {now - facts.since:.0f} s"
        return NodeState.SILENT, ""

    def _judge_ourselves(self, now: float) -> None:
        linked = {node_id for node_id, facts in self._nodes.items() if facts.linked}
        silent = {node_id for node_id, it in self._nodes.items() if it.counts and self._is_silent(it)}
        if self._cut_off_from:
            self._cut_off_from |= linked | silent  # a manager that begins adds its nodes one by one
            if not silent or 2 * len(self._down()) <= len(self._cut_off_from):
                self._cut_off_from = set()
                self._in_touch_since = now
        elif len(silent) > len(linked):
            self._cut_off_from, self._cut_off_at = linked | silent, now

    def _is_silent(self, facts: _Facts) -> bool:
        return not (facts.linked or facts.surely_gone or facts.state is NodeState.LOST)

    def _down(self) -> set[str]:
        """Of those that were linked before it was cut off; also such as are lost or forgotten by now."""
        return {it for it in self._cut_off_from if it not in self._nodes or not self._nodes[it].linked}
