"""The journals of a node's services move: the orders, and what a machine does for them.

A journal leaves in these steps, each of which may be asked again: `CopySessions` (a copy is made, while none
of its instances runs here), `ReadCopy` (a piece of it), `LeaveSessions` (what has left is removed). It
arrives in these: `WriteCopy`, `PutInSessions` (into the journal that is there), `DropCopy`. The manager's own
machine does the same, without messages.
"""

from __future__ import annotations

import os
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import field, frozen

from ..errors import StorageError
from ..journal import moving
from ..journal.schema import BESIDE
from ..models.fields import ID

PIECE_BYTES = 2**19
_KEPT_S = 86400.0  #: a copy that has arrived from a move which then went elsewhere, as this node was lost


def _is_id(_: object, attribute: object, value: str) -> None:
    if not ID.fullmatch(value):
        raise ValueError(f"{value!r} is no id")


@frozen
class OfMove:
    """Of one move of one service's sessions."""

    service_id: str = field(validator=_is_id)
    move_id: str = field(validator=_is_id)


@frozen
class CopySessions(OfMove):
    """Answered by `SessionsCopied`; refused while an instance of the service runs here."""


@frozen
class SessionsCopied:
    bytes: int  #: 0: it has no session


@frozen
class ReadCopy(OfMove):
    """Answered by `CopyPiece`."""

    offset: int


@frozen
class CopyPiece:
    data: str = field(repr=False)  #: base64; empty at the end


@frozen
class WriteCopy(OfMove):
    """Answered by `CopyWritten`. A piece that does not begin where the copy ends is not written."""

    offset: int
    data: str = field(repr=False, default="")


@frozen
class CopyWritten:
    bytes: int  #: how many there are now


@frozen
class PutInSessions(OfMove):
    """Answered by `SessionsPutIn`."""


@frozen
class SessionsPutIn:
    sessions: int  #: that were not there already


@frozen
class LeaveSessions(OfMove):
    """They are elsewhere; what is begun here from now on is of this generation. Answered by
    `SessionsLeft`.
    """

    generation: int


@frozen
class DropCopy(OfMove):
    """What is left of a move is removed. Answered by `SessionsLeft`."""


@frozen
class SessionsLeft:
    """It was done."""


MoveOrder = CopySessions | ReadCopy | WriteCopy | PutInSessions | LeaveSessions | DropCopy
MoveAnswer = SessionsCopied | CopyPiece | CopyWritten | SessionsPutIn | SessionsLeft
MOVE_ORDERS: tuple[type[MoveOrder], ...] = (
    CopySessions,
    ReadCopy,
    WriteCopy,
    PutInSessions,
    LeaveSessions,
    DropCopy,
)


class SessionMoves:
    """Of the journals `DIRECTORY/SERVICE_ID.db`."""

    def __init__(self, directory: Path, runs: Callable[[str], bool]) -> None:
        """`runs`: whether an instance of the service of that id runs here."""
        self._directory, self._runs = directory, runs
        self._limiter = trio.CapacityLimiter(2)

    async def answer(self, order: MoveOrder) -> MoveAnswer:
        """Raises `StorageError`."""
        if isinstance(order, CopySessions | LeaveSessions) and self._runs(order.service_id):
            raise StorageError("an instance of it runs there still")
        # Not given up when the link goes down: what it does is done again as it was.
        return await trio.to_thread.run_sync(self._do, order, limiter=self._limiter)

    def _do(self, order: MoveOrder) -> MoveAnswer:
        service_id, move_id = order.service_id, order.move_id
        journal = self._directory / f"{service_id}.db"
        leaving = self._directory / f"{service_id}.{move_id}.leaving"
        arriving = self._directory / f"{service_id}.{move_id}.arriving"
        try:
            match order:
                case CopySessions():
                    for file in self._directory.glob(f"{service_id}.*.leaving"):
                        if file != leaving:  # of a manager that died before it had written down its move
                            file.unlink(missing_ok=True)
                    return SessionsCopied(moving.copy(journal, leaving))
                case ReadCopy(offset=offset):
                    return CopyPiece(b64encode(_read(leaving, offset)).decode())
                case WriteCopy(offset=offset, data=data):
                    for file in self._directory.glob("*.arriving"):
                        if not data and file.stat().st_mtime < time.time() - _KEPT_S:
                            file.unlink(missing_ok=True)
                    return CopyWritten(_write(arriving, offset, b64decode(data)))
                case PutInSessions():
                    return SessionsPutIn(moving.put_in(journal, arriving))
                case LeaveSessions(generation=generation):
                    for file in (*(journal.with_name(journal.name + it) for it in BESIDE), journal):
                        file.unlink(missing_ok=True)
                    moving.begin_generation(journal, generation)
                    leaving.unlink(missing_ok=True)
                case DropCopy():
                    for file in self._directory.glob(f"{service_id}.{move_id}.*"):
                        file.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"sessions cannot move: {error.strerror or error} ({journal})") from error
        return SessionsLeft()


def _read(file: Path, offset: int) -> bytes:
    with open(file, "rb") as source:
        source.seek(offset)
        return source.read(PIECE_BYTES)


def _write(file: Path, offset: int, data: bytes) -> int:
    """Returns its size now."""
    os.makedirs(file.parent, mode=0o700, exist_ok=True)
    with open(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as target:
        size = target.seek(0, os.SEEK_END)
        if data and size == offset:
            size += target.write(data)
        return size
