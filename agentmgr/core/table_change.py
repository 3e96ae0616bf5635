"""How one routing table follows another, so that a change costs what has changed and not what there is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attrs import evolve, frozen

from .routing import Backend, RoutingTable


@frozen
class TableChange:
    """What differs, in backends only. In both tables they are in the order of their services' names."""

    backends: tuple[Backend, ...] = ()  #: those that are new, or not as they were; in their order
    gone: tuple[str, ...] = ()  #: instance ids; one that another service has now is in `backends` too
    before: Mapping[str, str] = MappingProxyType({})
    """By the id of a new one: which of its service it stands before. The other new ones are the last."""

    @classmethod
    def between(cls, old: RoutingTable, new: RoutingTable) -> TableChange | None:
        """None: more than backends differs, or they are not in that order, or were in another one."""
        if evolve(old, backends=()) != evolve(new, backends=()):
            return None
        # Nearly all backends are the same objects: identity shows that; to compare fields takes far longer.
        was, now = set(map(id, old.backends)), set(map(id, new.backends))
        touched = {b.service_name for b in old.backends if id(b) not in now}
        touched |= {b.service_name for b in new.backends if id(b) not in was}
        stay = [b for b in old.backends if id(b) in now]
        if stay != [b for b in new.backends if id(b) in was] or not _is_by_service(old, new):
            return None
        changed: list[Backend] = []
        gone: list[str] = []
        before: dict[str, str] = {}
        olds, news = _members(old, touched), _members(new, touched)
        for name in sorted(touched):
            here, there = news.get(name, {}), olds.get(name, {})
            if [i for i in here if i in there] != [i for i in there if i in here]:
                return None
            gone += there.keys() - here.keys()
            changed += (b for instance_id, b in here.items() if there.get(instance_id) != b)
            anchor = None
            for instance_id in reversed(here):
                if instance_id in there:
                    anchor = instance_id
                elif anchor is not None:
                    before[instance_id] = anchor
        return cls(tuple(changed), tuple(gone), before)


def _is_by_service(*tables: RoutingTable) -> bool:
    names = [[backend.service_name for backend in table.backends] for table in tables]
    return all(found == sorted(found) for found in names)


def _members(table: RoutingTable, names: set[str]) -> dict[str, dict[str, Backend]]:
    found: dict[str, dict[str, Backend]] = {}
    for backend in table.backends:
        if backend.service_name in names:
            found.setdefault(backend.service_name, {})[backend.instance_id] = backend
    return found
