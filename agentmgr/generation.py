"""Which of two managers of one cluster is the newer one: the one that its nodes obey.

A database can be restored on another machine while the manager that it was copied from lives on, or comes
back with its machine. Both have the cluster's CA, and all nodes in their database. So each manager has a
*generation*: when its database was restored last, and how often it was started since. A node keeps the newest
one that it has obeyed, and obeys no older one; it shows the newer one to that, signed by the cluster's CA, so
that no node can end a manager with a lie.

The time of the last restore stands for the count of them: two copies of one database are not restored within
the same second.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from attrs import evolve, field, frozen

from .codec import from_answer, from_json, parse_json, to_json
from .errors import CannotUseCluster, InvalidRequest, ManagerReplaced
from .models import utc_now
from .replacing import replace

T = TypeVar("T")

_COUNT = "generation.json"
_NEWER = "replaced-by.json"


@frozen
class Generation:
    restored: int  #: when its database was restored, in seconds since the epoch; 0: never
    start: int  #: how often it was started since
    manager_id: str  #: of this run of it
    host: str = ""  #: for people, as `at`
    at: datetime = field(factory=utc_now)  #: when it was started
    signature: str = field(default="", eq=False, repr=False)  #: of the cluster's CA

    def yields_to(self, other: Generation) -> bool:
        """Whether nodes that obey `other` do not obey this one. Of two that are equally new, as when a
        directory was copied, they obey the one that they knew first.
        """
        if (self.restored, self.start) == (other.restored, other.start):
            return self.manager_id != other.manager_id
        return (self.restored, self.start) < (other.restored, other.start)

    @property
    def signed(self) -> bytes:
        """What is signed."""
        count = f"{self.restored} {self.start} {self.manager_id}"
        return f"agentmgr generation {count} {self.at.isoformat()} {self.host}".encode()

    def __str__(self) -> str:
        return f"the manager on {self.host or 'another machine'}, started {self.at:%Y-%m-%d %H:%M:%S} UTC"


@frozen
class _Count:
    restored: int = 0
    start: int = 0


class Signer(Protocol):
    """The cluster's CA (`agentmgr.ca`)."""

    def sign(self, content: bytes) -> str: ...


def begin(directory: Path, manager_id: str, authority: Signer) -> Generation:
    """That of a manager which starts now; `directory`: of its cluster's keys.

    Raises `ManagerReplaced` where it is known to be, and `CannotUseCluster` where the count cannot be kept.
    """
    count = _counted(directory)
    count = evolve(count, start=count.start + 1)
    begun = Generation(count.restored, count.start, manager_id, socket.gethostname())
    if (newer := _replaced_by(directory)) is not None and begun.yields_to(newer):
        raise ManagerReplaced(replaced(newer))
    _keep(directory / _COUNT, count)
    return evolve(begun, signature=authority.sign(begun.signed))


def replaced(newer: Generation) -> str:
    """What a manager says at its end, and when it is started again."""
    return (
        f"this manager was replaced: the nodes of its cluster obey {newer}; nothing is started here, and "
        "what runs on nodes goes on there. Only if that one is gone for good: `agentmgr backup FILE`, "
        "`agentmgr restore FILE`, and start this one again"
    )


def note_replaced(directory: Path, newer: Generation) -> None:
    """For the next one that is started here. Raises `CannotUseCluster`."""
    _keep(directory / _NEWER, newer)


def note_restored(directory: Path) -> None:
    """Makes the next manager a newer one than any that this database has had. Raises `CannotUseCluster`."""
    known, newer = _counted(directory).restored, _replaced_by(directory)
    if newer is not None:
        known = max(known, newer.restored)
    _keep(directory / _COUNT, _Count(restored=max(int(time.time()), known + 1)))
    (directory / _NEWER).unlink(missing_ok=True)


class Obeyed:
    """The newest generation that a node has obeyed, in a file of its directory."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "generation.json"

    def read(self) -> Generation | None:
        """None where there was none yet. Raises `CannotUseCluster`."""
        return _read(self._file, lambda content: from_answer(parse_json(content), Generation))

    def write(self, generation: Generation) -> None:
        """Raises `CannotUseCluster`."""
        _keep(self._file, generation)


def _counted(directory: Path) -> _Count:
    """Raises `CannotUseCluster`."""
    return _read(directory / _COUNT, lambda content: from_json(content, _Count)) or _Count()


def _replaced_by(directory: Path) -> Generation | None:
    """Raises `CannotUseCluster`."""
    return _read(directory / _NEWER, lambda content: from_answer(parse_json(content), Generation))


def _read(file: Path, read: Callable[[bytes], T]) -> T | None:
    try:
        return read(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, InvalidRequest) as error:
        raise CannotUseCluster(f"{file} cannot be read: {error}") from None


def _keep(file: Path, content: Generation | _Count) -> None:
    try:
        replace(file, to_json(content).encode(), lasting=True)
    except OSError as error:
        raise CannotUseCluster(f"{file} cannot be written: {error.strerror or error}") from None
