"""Whose a recorded process is. A record can be copied with its database; the proofs below cannot.

An instance belongs to the directory of logs that it was started from. Its token bears the mark of that
directory (`InstanceTokens`), or it holds the lock file there that it inherited (`InstanceLock`), or it was
taken over explicitly. For a copy of the directory none of this is true, so the copy's manager neither adopts
the process nor ends it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from ..models import InstanceRecord
from ..process.paths import RuntimePaths, database_of
from . import procfs
from .instance_lock import DIRECTORY, InstanceLock
from .instance_tokens import InstanceTokens


@frozen
class Stranger:
    """A recorded process that lives and belongs to another directory."""

    record: InstanceRecord
    owner: Path | None  #: the database whose manager started it, or the directory of logs; None: not known

    @property
    def owner_is_there(self) -> bool:
        """Whether the next manager there would adopt it."""
        owner = self.owner
        return owner is not None and (owner.is_dir() or RuntimePaths.of(owner).directory.is_dir())

    def __str__(self) -> str:
        whose = "another database" if self.owner is None else str(self.owner)
        return f"process {self.record.pid} (instance {self.record.instance_id}), which belongs to {whose}"


def lives(record: InstanceRecord) -> bool:
    """Whether the recorded process still runs; another process with its pid does not count.

    One that a node's daemon has started is that daemon's business, on this machine too: False.
    """
    here = not record.node_id and record.boot_id == procfs.boot_id()
    found = procfs.stat(record.pid) if here else None
    return found is not None and found.start_ticks == record.process_start and found.lives


def stranger(record: InstanceRecord, log_dir: Path, tokens: InstanceTokens | None) -> Stranger | None:
    """None where the recorded process belongs to `log_dir`, whose tokens these are, or is gone."""
    if not lives(record):
        return None
    lock = InstanceLock(log_dir / DIRECTORY / record.instance_id)
    ours = tokens is not None and (
        tokens.made(record.token) or lock.claimed_by(tokens.mark(record.instance_id))
    )
    return None if ours or lock.holds(record.pid) else Stranger(record, owner(record.pid))


def strangers(records: Iterable[InstanceRecord], log_dir: Path) -> list[Stranger]:
    tokens = InstanceTokens.found(log_dir)
    return [found for record in records if (found := stranger(record, log_dir, tokens)) is not None]


def owner(pid: int) -> Path | None:
    """The database whose manager started this process, or is it, found by the lock files that it has open.
    For a supervisor without a database, its directory of logs. None if it is not known.
    """
    for target in procfs.open_targets(pid):
        if database := database_of(Path(target)):
            return database
        logs, found, _ = target.partition(f"/{DIRECTORY}/")
        if found:
            return database_of(Path(logs)) or Path(logs)
    return None


def claim(stranger: Stranger, log_dir: Path) -> None:
    """Makes the process belong to `log_dir` from now on. Raises OSError."""
    record = stranger.record
    InstanceLock(log_dir / DIRECTORY / record.instance_id).claim(
        InstanceTokens.of(log_dir).mark(record.instance_id)
    )


def drop_copied(log_dir: Path) -> None:
    """Removes the lock files that came with a copied directory: the next sweep would take them for ours."""
    directory = log_dir / DIRECTORY
    files = list(directory.iterdir()) if directory.is_dir() else []
    held = {target for pid in procfs.pids() for target in procfs.open_targets(pid)} if files else ()
    for file in files:
        if os.path.realpath(file) not in held:
            file.unlink(missing_ok=True)
