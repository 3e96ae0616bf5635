"""What is asked for an instance, as Ray has it: a bundle of resources, and a selector of labels."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.amounts import in_words
from ..errors import InvalidRequest
from ..models.nodes import Selector, selectors
from .engine import Demand, Machine

PREFIX = "ray.io/"  #: of the labels that Ray itself gives its machines
NODE_ID = f"{PREFIX}node-id"  #: another one after each restart of Ray: the bridge does not pass it on
OWN_KEYS = frozenset(
    {"accelerator-type", "market-type", "node-group", "availability-region", "availability-zone"}
)
"""What Ray labels machines with, after its prefix (its guide, "Use labels to control scheduling")."""


def bundle(demand: Demand) -> dict[str, float]:
    """Raises `InvalidRequest`."""
    if demand.gpus > 1 and demand.gpus % 1:
        raise InvalidRequest(f"gpus is a part of one GPU, or a whole number of them, not {demand.gpus:g}")
    if not demand.amounts:
        raise InvalidRequest("nothing is to be reserved")
    return demand.amounts


def selector(demand: Demand, machines: Iterable[Machine], unfit: Iterable[str]) -> dict[str, str] | None:
    """None: no machine that Ray has now can match, as those are not there that it has to be on.

    `unfit`: engine ids of machines that cannot run it. Raises `InvalidRequest`.
    """
    machines = tuple(machines)
    keys = frozenset(key for machine in machines for key in machine.labels)
    asked: dict[str, list[Selector]] = {}
    for each in selectors(demand.place_on):
        asked.setdefault(_key(each.key, keys), []).append(each)
    found = {key: _condition(key, parts) for key, parts in asked.items()}
    not_on = {it.engine_id for it in machines if it.node_id in demand.not_on} | set(unfit)
    if demand.only_on is not None:
        only_on = {it.engine_id for it in machines if it.node_id in demand.only_on} - not_on
        if not only_on:
            return None
        found[NODE_ID] = f"in({','.join(sorted(only_on))})"
    elif not_on:
        found[NODE_ID] = f"!in({','.join(sorted(not_on))})"
    return found


def _key(key: str, there: frozenset[str]) -> str:
    full = PREFIX + key
    return full if key not in there and (full in there or key in OWN_KEYS) else key


def _condition(key: str, parts: list[Selector]) -> str:
    """Ray takes one for each key."""
    allowed = [part.values for part in parts if not part.negated]
    refused = frozenset[str]().union(*(part.values for part in parts if part.negated))
    if not allowed:
        return f"!in({','.join(sorted(refused))})"
    values = frozenset.intersection(*allowed) - refused
    if not values:
        texts = " and ".join(map(str, parts))
        raise InvalidRequest(f"{texts} cannot match together")
    return f"in({','.join(sorted(values))})"


def described(demand: Demand) -> str:
    """For people: `1 GPU and 4 CPUs (zone=b)`."""
    labels = " and ".join(demand.place_on)
    return in_words(demand.amounts) + (f" ({labels})" if labels else "")
