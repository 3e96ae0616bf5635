"""What the daemon of a node knows of its instances, on disk: a file for each, which only its owner may read.

An entry is written before its launch is answered. A daemon that is killed between the two leaves a process
that its next one ends (`Launcher.sweep`); the manager's order is asked again, and starts another one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ..codec import from_answer, parse_json, to_json
from ..errors import InvalidRequest
from ..models import InstanceRecord, ServiceSpec
from ..replacing import replace
from .bundles import Shipment
from .protocol import End

log = logging.getLogger(__name__)

_DIRECTORY = "instances"
_SUFFIX = ".json"


@frozen
class Entry:
    """One instance, and the child that it had last."""

    spec: ServiceSpec
    position: int
    check_interval_s: float
    try_id: str  #: of the `Launch`: asked again, it is answered from here
    record: InstanceRecord
    unenforced: tuple[str, ...] = ()
    shipment: Shipment | None = None
    end: End | None = None  #: how it ended, if it has


class NodeJournal:
    def __init__(self, directory: Path) -> None:
        self._directory = directory / _DIRECTORY
        self._left: dict[str, Entry] = {}  # what could not be written, by instance id

    def write(self, entry: Entry) -> None:
        """It survives a kill of the daemon at any moment; raises nothing.

        A power cut ends the instances too, so nothing waits for the disk.
        """
        instance_id = entry.record.instance_id
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace(self._path(instance_id), to_json(entry).encode(), lasting=False)
        except OSError as error:
            # The instance runs on. If this daemon is killed now, the next one ends it, and it starts anew.
            if instance_id not in self._left:
                log.warning("cannot write down instance %s: %s", instance_id, error.strerror)
            self._left[instance_id] = entry
        else:
            self._left.pop(instance_id, None)

    def write_left(self) -> None:
        """Tries again with what could not be written; raises nothing."""
        for entry in list(self._left.values()):
            self.write(entry)

    def remove(self, instance_id: str) -> None:
        self._left.pop(instance_id, None)
        with suppress(OSError):
            self._path(instance_id).unlink()

    def entries(self) -> Iterator[Entry]:
        """Those of the daemons before; one that cannot be read is left out, and its process ended."""
        if not self._directory.is_dir():
            return
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                yield from_answer(parse_json(path.read_bytes()), Entry)
            except (OSError, InvalidRequest) as error:
                log.warning("cannot read %s, ending its instance: %s", path, error)
                with suppress(OSError):
                    path.unlink()

    def _path(self, instance_id: str) -> Path:
        return self._directory / f"{instance_id}{_SUFFIX}"
