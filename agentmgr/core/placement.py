"""Which node an instance runs on, or why none can take it.

The rules:

* A node can take it while it is linked, not cordoned, and all selectors match its labels.
* An instance goes back to the node that its position was on before, if that can take it: its bundle, its port
  and the journal of its sessions are there. So where it could not be launched again and again, as on a node
  whose disk is full, the others come first.
* Else it goes to the node with the fewest instances of its service, of those to the one with the fewest
  instances at all. With `pack` it is the most instead, so that few nodes are in use.
* Ties go by the node's name. So the same state has the same answer.
* An instance that must never be there twice (`on_node_loss=wait`) waits for its node, until that is
  forgotten: it will not come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from attrs import field, frozen

from ..models.nodes import NodeState, Selector

K = TypeVar("K", bound=Hashable)


@frozen
class Candidate:
    """A node, as far as it matters for what is placed there."""

    node_id: str  #: "" is the manager's own
    name: str
    state: NodeState
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class Wish:
    """What is asked for one instance."""

    service_id: str
    position: int  #: among the instances of its service, from 0
    place_on: tuple[Selector, ...] = ()
    pack: bool = False
    bound_to: str | None = None  #: the id of the node to wait for while that is known; None: any node will do
    short_on: frozenset[str] = frozenset()  #: ids of nodes that could not launch it for want of something


@frozen
class Nowhere:
    """No node can take it now."""

    reason: str  #: for the user, as in `waits for a node with zone=b: b2 is silent`


class Placed:
    """Which instance is on which node: those that run, and those that are about to be launched."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[str, int, str]] = {}  # service, position and node, by instance
        self._of_service: Counter[tuple[str, str]] = Counter()  # by service and node
        self._on_node: Counter[str] = Counter()
        self._at: dict[tuple[str, int], dict[str, str]] = {}  # nodes by instance, by service and position
        self._last: dict[tuple[str, int], str] = {}  # node, by service and position

    def put(self, instance_id: str, service_id: str, position: int, node_id: str) -> None:
        self.expect(instance_id, service_id, position, node_id)
        self._at.setdefault((service_id, position), {})[instance_id] = node_id
        self._last[service_id, position] = node_id

    def expect(self, instance_id: str, service_id: str, position: int, node_id: str) -> None:
        """It will probably be there, and counts already: else all that wait would choose the same node."""
        self.remove(instance_id)
        self._nodes[instance_id] = service_id, position, node_id
        self._of_service[service_id, node_id] += 1
        self._on_node[node_id] += 1

    def remove(self, instance_id: str) -> None:
        """It runs no more, or is on no node yet. What comes next to its position knows still where it was; of
        two at a position, as in a rolling restart, it is the node of the one that remains.
        """
        if (found := self._nodes.pop(instance_id, None)) is None:
            return
        service_id, position, node_id = found
        _count_down(self._of_service, (service_id, node_id))
        _count_down(self._on_node, node_id)
        others = self._at.get((service_id, position), {})
        if others.pop(instance_id, None) is None:
            return  # it was only expected there
        if others:
            self._last[service_id, position] = list(others.values())[-1]
        else:
            del self._at[service_id, position]

    def forget(self, service_id: str) -> None:
        """The service is no more."""
        self._last = {key: node_id for key, node_id in self._last.items() if key[0] != service_id}

    def node_of(self, instance_id: str) -> str | None:
        found = self._nodes.get(instance_id)
        return None if found is None else found[2]

    def last(self, service_id: str, position: int) -> str | None:
        """The node that an instance at this position was on last; None: there was none."""
        return self._last.get((service_id, position))

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Each service with each node that it is on."""
        return frozenset(self._of_service)

    def of_service(self, service_id: str, node_id: str) -> int:
        return self._of_service[service_id, node_id]

    def on_node(self, node_id: str) -> int:
        return self._on_node[node_id]

    def nodes(self) -> frozenset[str]:
        """The ids of those where there is anything."""
        return frozenset(self._on_node)


def place(wish: Wish, nodes: Iterable[Candidate], placed: Placed) -> str | Nowhere:
    """The id of the node to launch it on."""
    nodes = tuple(nodes)
    bound_to = [node for node in nodes if node.node_id == wish.bound_to]
    fitting = [node for node in bound_to or nodes if all(it.matches(node.labels) for it in wish.place_on)]
    free = [node for node in fitting if node.state is NodeState.LINKED]
    if not free:
        return Nowhere(
            f"waits for {_asked_for(wish, bound_to)}: {_why_none(wish, bound_to or nodes, fitting)}"
        )
    free = [node for node in free if node.node_id not in wish.short_on] or free
    before = placed.last(wish.service_id, wish.position)
    if any(node.node_id == before for node in free):
        assert before is not None
        return before
    sign = -1 if wish.pack else 1

    def value(node: Candidate) -> tuple[int, int, str, str]:
        same, all_of_it = placed.of_service(wish.service_id, node.node_id), placed.on_node(node.node_id)
        return sign * same, sign * all_of_it, node.name, node.node_id

    return min(free, key=value).node_id


def _asked_for(wish: Wish, bound_to: list[Candidate]) -> str:
    labels = " and ".join(map(str, wish.place_on))
    which = f"node {bound_to[0].name}, where it ran" if bound_to else "a node"
    return f"{which} with {labels}" if labels else which


_NAMED = 5  #: more would fill the line


def _why_none(wish: Wish, nodes: Sequence[Candidate], fitting: Sequence[Candidate]) -> str:
    if fitting:
        by_name = sorted(fitting, key=lambda node: node.name)
        return _listed([f"{node.name} is {node.state}" for node in by_name], "more cannot take it")
    for selector in wish.place_on:
        if any(selector.matches(node.labels) for node in nodes):
            continue
        values = sorted({node.labels[selector.key] for node in nodes if selector.key in node.labels})
        if values:
            return f"no node matches; they have {_listed([f'{selector.key}={it}' for it in values])}"
        keys = sorted({f"{key}=…" for node in nodes for key in node.labels})
        return f"no node has a label {selector.key}; they have {_listed(keys) or 'none'}"
    return "each is on some node, and no node has all of them"


def _listed(texts: Sequence[str], rest: str = "more") -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f", and {more} {rest}" if more > 0 else "")


def _count_down(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
