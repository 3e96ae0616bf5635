"""Which processes of an earlier manager are taken over: those that live and are surely the recorded ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from attrs import Factory, define, frozen

from ..models import InstanceRecord, ServiceSpec
from .launcher import Child, Launcher, Slot

log = logging.getLogger("agentmgr.supervisor")

Recorded = Iterable[tuple[ServiceSpec, Sequence[InstanceRecord]]]


@frozen
class Adopted:
    spec: ServiceSpec
    record: InstanceRecord
    slot: Slot
    child: Child


@define
class Adoption:
    adopted: list[Adopted] = Factory(list)  #: of each service, the one that was started first comes first
    gone: list[tuple[ServiceSpec, InstanceRecord]] = Factory(list)  #: whose process has ended

    @property
    def tokens(self) -> frozenset[str]:
        return frozenset(it.record.token for it in self.adopted)


def take_over(recorded: Recorded, launcher: Launcher) -> Adoption:
    """Processes that another manager started are in neither list: it is for that manager to end them."""
    found = Adoption()
    for spec, records in recorded:
        for record in sorted(records, key=lambda record: record.started_at):
            if (whose := launcher.stranger(record)) is not None:
                # The records came with a copy of the database. They stay, so that it can be looked up.
                log.warning("service %s: not adopting %s: this database is a copy", spec.name, whose)
                continue
            slot = launcher.slot(spec, record.instance_id, record.slot)
            child = slot.adopt(record)
            if child is None:
                slot.close()
                found.gone.append((spec, record))
            else:
                found.adopted.append(Adopted(spec, record, slot, child))
    return found
