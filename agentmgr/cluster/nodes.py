"""The nodes that a manager knows: who is alive, and what may be placed where."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import trio

from ..core.liveness import LOST_AFTER_S, Change, Liveness
from ..core.placement import Candidate
from ..generation import Generation
from ..models.nodes import NAME_LABEL, NodeState
from ..node.protocol import Changed
from .node_handle import NodeHandle

log = logging.getLogger(__name__)

OWN = ""  #: the node id of the manager's own machine
_RUNS_EVERY_S = 1.0  #: while a node is silent: so it is seen when the manager itself does not run
_LATE_S = 0.5  #: less is no wonder


class NodesObserver(Protocol):
    """Learns what happens to nodes; all of it synchronous and quick."""

    def node_changed(self, node_id: str, state: NodeState, reason: str) -> None:
        """It is in another state. `reason` is for the user; "" where the state says it all."""

    def node_described(self, handle: NodeHandle) -> None:
        """It has linked with another address or other labels than were known."""

    def node_obeys(self, node_id: str, newer: Generation) -> None:
        """Its daemon says that it obeys a newer manager, and was refused."""


class NoObserver:
    """Keeps nothing."""

    def node_changed(self, node_id: str, state: NodeState, reason: str) -> None:
        pass

    def node_described(self, handle: NodeHandle) -> None:
        pass

    def node_obeys(self, node_id: str, newer: Generation) -> None:
        pass


class Nodes:
    """All of one cluster, by their ids. Iteration gives the handles of all but the manager's own machine."""

    def __init__(
        self,
        manager_id: str,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        cordoned: bool = False,
        lost_after_s: float = LOST_AFTER_S,
        observer: NodesObserver | None = None,
        generation: Generation | None = None,
    ) -> None:
        """`name`, `labels`, `cordoned`: of the manager's own machine. `manager_id`: of this run of it."""
        self.name, self.labels = name, dict(labels or {})
        self.news = trio.lowlevel.ParkingLot()  #: unparked at each change that placement may care about
        self.retired = False
        self._manager_id, self._generation = manager_id, generation
        self._handles: dict[str, NodeHandle] = {}
        self._linked: set[str] = set()  #: as `_liveness` knows it
        self._liveness = Liveness(lost_after_s)
        self._observer = observer or NoObserver()
        self._all_known = False
        self._of_machines: dict[str, Mapping[str, str]] = {}  # labels, by node id
        self._gone: dict[str, str] = {}  # what the engine says, by node id
        self._again = trio.Event()  #: set when the time of the next look may be another one
        self._runs_by = math.inf  #: when `run` goes on at the latest
        self._liveness.add(OWN, trio.current_time(), was_linked=True, cordoned=cordoned)
        self._liveness.link_up(OWN, trio.current_time())
        self._look()

    async def run(self) -> None:
        """Gives up nodes that are silent for too long; until cancelled."""
        while True:
            self._again = trio.Event()
            due = math.inf if self.retired else self._liveness.next_look()
            self._runs_by = due if due == math.inf else min(due, trio.current_time() + _RUNS_EVERY_S)
            with trio.move_on_at(self._runs_by) as until:
                await self._again.wait()
            if until.cancelled_caught:
                self._look()

    async def serve(self, node_id: str, stream: trio.abc.Stream) -> None:
        """One link of a node, until it is down. Raises nothing, and does not close the stream.

        Returns at once for a node that is not known, or was forgotten.
        """
        if (handle := self._handles.get(node_id)) is not None:
            await handle.serve(stream)

    # Which there are

    def add(
        self,
        node_id: str,
        name: str,
        *,
        address: str = "",
        labels: Mapping[str, str] | None = None,
        cordoned: bool = False,
        ran: bool = False,
    ) -> NodeHandle:
        """A node that has joined, now or under an earlier manager. `ran`: there are records of its instances,
        so that it is missed if it does not link.
        """
        handle = NodeHandle(
            node_id,
            name,
            address=address,
            labels=labels,
            manager_id=self._manager_id,
            generation=self._generation,
        )
        handle.on_link = lambda: self._link_changed(handle)
        handle.on_newer = lambda newer: self._observer.node_obeys(node_id, newer)
        handle.on(Changed, self._instance_changed)
        self._handles[node_id] = handle
        if self._all_known:
            handle.know_all()
        self._liveness.add(node_id, trio.current_time(), was_linked=ran, cordoned=cordoned)
        self._liveness.engine_says(node_id, self._gone.get(node_id, ""))
        self._look()
        return handle

    def know_all(self) -> None:
        """The manager has adopted all that it knows: what else its nodes run is ended, now and later."""
        self._all_known = True
        for handle in self:
            handle.know_all()

    def forget(self, node_id: str) -> None:
        """It will not come back: what it ran is started elsewhere."""
        if (handle := self._handles.pop(node_id, None)) is not None:
            self._liveness.remove(node_id)
            self._linked.discard(node_id)
            handle.on_link = lambda: None
            handle.forget()
            self._look()

    def cordon(self, node_id: str, cordoned: bool) -> None:
        """Places nothing new there, or does so again. Raises `KeyError` for one that is not known."""
        self._liveness.cordon(node_id, cordoned)
        self._look()

    def retire(self) -> None:
        """A newer manager has them: none is given up, and nothing is placed any more."""
        self.retired = True
        self.news.unpark_all()
        self._again.set()

    def engine_says(self, node_id: str, gone: str, labels: Mapping[str, str] | None = None) -> None:
        """`gone`: why the engine takes it to be gone; "": it is alive, or not known. `labels`: those of its
        machine. The node may join later.
        """
        self._gone[node_id] = gone
        if labels is not None:
            self._of_machines[node_id] = labels
        if node_id == OWN or node_id in self._handles:
            self._liveness.engine_says(node_id, gone)
            self._look()

    def __iter__(self) -> Iterator[NodeHandle]:
        return iter(tuple(self._handles.values()))

    def get(self, node_id: str) -> NodeHandle | None:
        return self._handles.get(node_id)

    def name_of(self, node_id: str) -> str:
        """Its id where it is not known any more."""
        if node_id == OWN:
            return self.name
        return self._handles[node_id].name if node_id in self._handles else node_id

    def state_of(self, node_id: str) -> tuple[NodeState, str]:
        """And why, for the user. Raises `KeyError`."""
        return self._liveness.state(node_id), self._liveness.reason(node_id)

    def candidates(self) -> list[Candidate]:
        """All, the manager's own machine first."""
        if self.retired:
            return []
        own = Candidate(OWN, self.name, self._liveness.state(OWN), self._all_labels(OWN, self.name))
        return [own, *map(self._candidate, self._handles.values())]

    def labels_of(self, node_id: str) -> dict[str, str]:
        """Its own, which hold, and those of its machine; without `node`, its name."""
        handle = self._handles.get(node_id)
        own = self.labels if handle is None else handle.labels
        return {**self._of_machines.get(node_id, {}), **own}

    def troubles(self) -> tuple[str, ...]:
        """Faults that last now, for the user."""
        return (self._liveness.held_back,) if self._liveness.held_back else ()

    def _candidate(self, handle: NodeHandle) -> Candidate:
        labels = self._all_labels(handle.node_id, handle.name)
        return Candidate(handle.node_id, handle.name, handle.state, labels)

    def _all_labels(self, node_id: str, name: str) -> dict[str, str]:
        return {**self.labels_of(node_id), NAME_LABEL: name}

    # Who is alive

    def _instance_changed(self, changed: Changed) -> None:
        if changed.state.over and changed.state.gpus:  # another one may wait for these
            self.news.unpark_all()

    def _link_changed(self, handle: NodeHandle) -> None:
        node_id, now = handle.node_id, trio.current_time()
        if handle.linked is (node_id in self._linked):
            return
        if handle.linked:
            self._linked.add(node_id)
            self._liveness.link_up(node_id, now)
            self._take_description(handle)
        else:
            self._linked.discard(node_id)
            self._liveness.link_down(node_id, now, in_order=handle.ended)
        self._look()

    def _take_description(self, handle: NodeHandle) -> None:
        """What its daemon says of itself holds: it was started with that."""
        if (facts := handle.facts) is None:
            return
        address = facts.address or handle.address
        if (dict(facts.labels), address) == (dict(handle.labels), handle.address):
            return
        handle.labels, handle.address = dict(facts.labels), address
        try:
            self._observer.node_described(handle)
        except Exception:  # what observes it must not hold up the link
            log.exception("internal error: cannot write down what node %s says of itself", handle.name)

    def _look(self) -> None:
        """Decides, and tells of what has changed."""
        if self.retired:
            return
        now = trio.current_time()
        if (late_s := now - self._runs_by) > _LATE_S:
            self._liveness.was_late(late_s)
            self._runs_by = now
        before, changes = self._liveness.held_back, self._liveness.look(now)
        if (held_back := self._liveness.held_back) and not before:
            log.warning("%s", held_back)
        elif before and not held_back:
            log.info("most nodes are linked again: this manager is not cut off any more")
        for change in changes:  # all states first: an observer of one change may place instances
            if (handle := self._handles.get(change.node_id)) is not None:
                handle.state, handle.state_reason = change.state, change.reason
        for change in changes:
            self._tell(change)
            if change.state is NodeState.LOST and (handle := self._handles.get(change.node_id)) is not None:
                handle.lose(change.reason)
        self.news.unpark_all()
        self._again.set()

    def _tell(self, change: Change) -> None:
        level = logging.WARNING if change.state is NodeState.LOST else logging.INFO
        because = f": {change.reason}" if change.reason else ""
        log.log(level, "node %s is %s%s", self.name_of(change.node_id), change.state, because)
        try:
            self._observer.node_changed(change.node_id, change.state, change.reason)
        except Exception:  # what observes it must not hold up the cluster
            log.exception("internal error: cannot report on node %s", self.name_of(change.node_id))
