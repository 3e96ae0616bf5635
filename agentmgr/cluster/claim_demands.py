"""What is asked of an engine for an instance: what it needs, and on which nodes that may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve, frozen

from ..core.placement import Candidate, Nowhere, Placed, Wish, place
from ..models import ServiceConfig
from ..models.nodes import NAME_LABEL, NodeState, resources
from .engine import Demand, Machine
from .ray_demands import PREFIX

_IN_USE = "waits for what runs there to have again what was reserved for it"


@frozen
class Sought:
    demand: Demand
    prefer: str | None  #: the node that placement chooses
    nowhere: str | None  #: why no machine, also none that is added, could have it


def demand_of(config: ServiceConfig) -> Demand:
    return Demand(
        config.cpus or 0.0,
        config.gpus or 0.0,
        config.memory_mb or 0,
        resources(config.resources),
        config.place_on,
    )


def takes(node: Candidate, wish: Wish) -> bool:
    return node.state is NodeState.LINKED and all(it.matches(node.labels) for it in wish.place_on)


def labels_of(machine: Machine) -> dict[str, str]:
    """Those that Ray itself gives also without its prefix."""
    labels = dict(machine.labels)
    return {key.removeprefix(PREFIX): value for key, value in labels.items()} | labels


def sought(
    demand: Demand,
    wish: Wish,
    candidates: Sequence[Candidate],
    machines: Mapping[str, Machine],
    placed: Placed,
    *,
    in_use: frozenset[str],
) -> Sought:
    """What to ask for now. `machines`: by the ids of their nodes. `in_use`: nodes that get nothing new.

    Labels that the engine does not know are looked at here.
    """
    nodes = [it for it in candidates if it.node_id in machines]
    ours = [it for it in wish.place_on if it.key == NAME_LABEL or _is_ours(it.key, nodes, machines)]
    theirs = tuple(str(it) for it in wish.place_on if it not in ours)
    not_on = {it.node_id for it in nodes if it.state is not NodeState.LINKED} | in_use
    only_on: frozenset[str] | None = None
    if ours:
        matching = {it.node_id for it in nodes if all(each.matches(it.labels) for each in ours)}
        if all(it.negated for it in ours):  # a machine that is added matches
            not_on |= {it.node_id for it in nodes} - matching
        else:
            only_on = frozenset(matching - not_on)
    if any(it.node_id == wish.bound_to for it in candidates):
        only_on = frozenset({wish.bound_to or ""} - not_on)
    found = place(wish, nodes, placed)
    nowhere = None
    if only_on is not None and not only_on:
        nowhere = _IN_USE if nodes else "waits for Ray to say which machines it has"
        if nodes and isinstance(found, Nowhere):
            nowhere = found.reason
    demand = evolve(
        demand,
        place_on=theirs,
        only_on=only_on,
        not_on=frozenset() if only_on is not None else frozenset(not_on),
    )
    return Sought(demand, None if isinstance(found, Nowhere) else found, nowhere)


def _is_ours(key: str, nodes: Sequence[Candidate], machines: Mapping[str, Machine]) -> bool:
    """Whether a node has that label from its own daemon, so that its engine does not know it."""
    return any(
        key in it.labels and it.labels[key] != labels_of(machines[it.node_id]).get(key) for it in nodes
    )
