"""What others than hosts ask of journals: a manager, its API and the command line.

An `Archive` has the journals of any number of services at one place: the files of a directory, those of a
node, or a Redis. Of several services it is asked at once, since a node is far away; `Found` says by service
what was found, and why a journal could not be read. A service without a journal there is not in it.

All of it works whether hosts run or not. `StorageError` is raised where nothing of the place can be read, or
not the one journal that was asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from attrs import Factory, frozen

from ..errors import InvalidRequest
from ..models.sessions import SessionState
from .journal import Frame, Question, SessionSnapshot, StoredFrame

T = TypeVar("T")

LAST_NUMBER = 2**63 - 1  #: that SQLite has
EVENT_BYTES = 2**18  #: of events that are read at once
EVENTS_FOUND = 1000  #: by their text


@frozen
class SessionSummary:
    session_id: str
    owner: str | None
    name: str | None
    state: SessionState
    instance_id: str | None  #: that holds it
    place: str  #: the cursor of the page after it
    turns: int
    input_tokens: int
    output_tokens: int
    created_at: float
    last_used_at: float
    ended_at: float | None
    end_reason: str | None


@frozen
class SessionPage:
    items: Sequence[SessionSummary]  #: the last used first
    next_cursor: str | None


@frozen
class SaidMessage:
    step_id: str
    message: str  #: JSON, as `TurnRecord.message`
    accepted_at: float


@frozen
class OpenQuestion:
    session_id: str
    owner: str | None
    name: str | None
    instance_id: str | None  #: that waits for the answer; None: it has died
    question: Question


@frozen
class ArchiveFigures:
    sessions: int = 0
    questions: int = 0  #: that wait for a person
    bytes: int = 0  #: of the file, without the pages that are free


@frozen
class Pruned:
    """What a pruning has erased, and why."""

    unused: tuple[str, ...] = ()  #: for longer than they are kept
    for_room: tuple[str, ...] = ()


@frozen
class Query:
    """Which sessions a page has."""

    state: SessionState | None = None
    owner: str | None = None
    text: str | None = None  #: in the name or the id
    limit: int = 100


@frozen
class Limits:
    """What a service keeps; 0: no limit."""

    retention_s: float = 0
    max_bytes: int = 0


@frozen
class Found(Generic[T]):
    """By service id."""

    values: Mapping[str, T] = Factory(dict)
    unreadable: Mapping[str, str] = Factory(dict)  #: why


class Archive(Protocol):
    """See above. `services` are ids."""

    @property
    def key(self) -> str:
        """Distinguishes the place from others, over restarts; "" is the manager's own directory."""

    @property
    def node_id(self) -> str | None:
        """Of the machine whose instances alone can take up what it has; "": the manager's, None: all can."""

    @property
    def label(self) -> str:
        """The same for people."""

    async def sessions(self, query: Query, cursors: Mapping[str, str | None]) -> Found[SessionPage]:
        """A page of each of these services, behind its cursor."""

    async def session(
        self, services: Collection[str], session_id: str
    ) -> Found[tuple[SessionSummary, SessionSnapshot] | None]:
        """One, with its last turns, and without events."""

    async def questions(self, services: Collection[str]) -> Found[Sequence[OpenQuestion]]:
        """The oldest first."""

    async def has_unfinished(self, services: Collection[str]) -> Found[bool]:
        """Whether a turn of any session runs or waits."""

    async def figures(self, services: Collection[str]) -> Found[ArchiveFigures]: ...

    async def prune(self, limits: Mapping[str, Limits], *, now: float | None = None) -> Found[Pruned]:
        """Erases what was not used for `retention_s`, then the longest unused beyond `max_bytes`.

        `now`: Unix time; None: the clock's. Sessions that a host holds go last, and only for room.
        """

    # Of one session. Raise `StorageError`.

    async def events(
        self, service_id: str, session_id: str, since: int = 0, *, max_bytes: int = EVENT_BYTES
    ) -> Sequence[StoredFrame] | None:
        """Those after the number `since`, the oldest first, as many as fit; None: there is no session."""

    async def events_with(self, service_id: str, session_id: str, text: str) -> Sequence[Frame]:
        """The first `EVENTS_FOUND` of its events that have `text` in their line."""

    async def messages(
        self, service_id: str, session_id: str, after: int, to: int
    ) -> Mapping[int, SaidMessage]:
        """What began the turns after the number `after`, up to `to`."""

    async def turn_that_runs(self, service_id: str, session_id: str) -> int:
        """Its number; 0 where none does."""

    async def turn_of(self, service_id: str, session_id: str, seq: int) -> int:
        """The number of the turn of an event; 0 where it is of none."""

    async def erase(self, service_id: str, session_id: str) -> bool:
        """Erases a session and all that was said in it, also where it was written before. Whether there was
        one. A host that holds it loses it at its next write.
        """

    async def remove(self, service_id: str) -> None:
        """Removes all of a service that has no instances any more; on a node that is away, later."""


# Cursors. A place in the order of sessions, the last used first, is the time of use, and what orders those of
# one time: `TIME:TIE`. In a page of several journals it has the journal's key behind it: `TIME:TIE:KEY`.


def place_in(key: str, cursor: str | None) -> str | None:
    """Where the page of one journal begins, of a page of several whose cursor names one of them.

    Those of one moment are in the order of the journals' keys. Raises `InvalidRequest`.
    """
    if cursor is None:
        return None
    place, _, last_key = cursor.rpartition(":")
    at, tie = moment(place)
    if key != last_key:
        tie = str(LAST_NUMBER if key > last_key else 0)
    return f"{at!r}:{tie}"


def moment(place: str) -> tuple[float, str]:
    """The time, and the tie, which is `LAST_NUMBER` before all of that time, 0 behind them.

    Raises `InvalidRequest`.
    """
    at, colon, tie = place.partition(":")
    try:
        if not colon:
            raise ValueError
        return float(at), tie
    except ValueError:
        raise no_cursor(place) from None


def no_cursor(cursor: str) -> InvalidRequest:
    return InvalidRequest(f"the cursor {cursor!r} is not one that was given out")
