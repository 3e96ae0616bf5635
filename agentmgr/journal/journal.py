"""What a host asks of the journal of its sessions, and the values that go in and out.

All times are Unix times in seconds. What is JSON is kept as its text: the journal reads none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

from attrs import frozen

from .links import HeldLink, LinkCopy


class TurnStatus(StrEnum):
    WAITING = "waiting"  #: behind a turn that runs
    RUNNING = "running"
    ENDED = "ended"


@frozen
class TurnRecord:
    """One message, and what became of it."""

    number: int  #: 1, 2, 3 … in its session
    step_id: str
    message: str  #: JSON: `{"content": …, "metadata": {…}}`
    accepted_at: float
    status: TurnStatus = TurnStatus.WAITING
    attempts: int = 0  #: how often it was begun
    started_at: float | None = None
    ended_at: float | None = None
    ended_by: str | None = None  #: the event that ended it, one of `protocol.TURN_ENDS`
    answer: str | None = None  #: JSON: the history's entry for the answer; None where it has none


@frozen
class Frame:
    """One event of a session; as a change: it was said."""

    seq: int
    turn: int  #: the number of the turn it belongs to; 0: none
    line: bytes  #: the event as `agent.events` writes it, without a line break


@frozen
class StoredFrame:
    seq: int
    step_id: str | None  #: of its turn
    line: bytes
    turn: int = 0  #: 0: of none


@frozen
class Question:
    """One that waits for a person."""

    step_id: str
    content: str  #: JSON: what its `agent.user_confirm` says
    asked_at: float


@frozen
class SessionRecord:
    """A session, but for its turns and events."""

    session_id: str
    owner: str | None
    created_at: float
    last_used_at: float
    name: str | None = None  #: unique among the sessions of its owner that have not ended
    last_seq: int = 0
    last_turn: int = 0
    state: str = "{}"  #: JSON
    memory: str | None = None  #: what a framework keeps, in its own words
    history: str | None = None  #: JSON: the entries before those of the turns after `history_turn`
    history_turn: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    ended_at: float | None = None
    end_reason: str | None = None


@frozen
class SessionSnapshot:
    """A whole session, as its copy in memory has it."""

    record: SessionRecord
    turns: Sequence[TurnRecord]
    frames: Sequence[Frame]
    questions: Sequence[Question] = ()


# What happens to a session. Each is small, and says what is, not what was.


@frozen
class Accepted:
    turn: TurnRecord


@frozen
class Started:
    turn: int
    attempts: int
    at: float


@frozen
class Asked:
    question: Question


@frozen
class Answered:
    """A question is closed, answered or not."""

    step_id: str


@frozen
class TurnEnded:
    """Committed together with the `Kept` and the `Frame` that are handed over with it."""

    turn: int
    ended_by: str
    answer: str | None
    at: float


@frozen
class Kept:
    """What an author and a framework keep. None: as before."""

    state: str | None = None
    memory: str | None = None
    history: str | None = None  #: replaces the entries of all turns up to `history_turn`
    history_turn: int = 0


@frozen
class Used:
    """Tokens, to be added."""

    input_tokens: int
    output_tokens: int


@frozen
class SessionEnded:
    reason: str
    at: float


Change = Accepted | Started | Frame | Asked | Answered | TurnEnded | Kept | Used | SessionEnded


class Copy(Protocol):
    """A session in a host's memory, as the journal calls it back. None of it may raise or wait."""

    def committed(self, seq: int) -> None:
        """All events up to `seq` may go to clients. May be called while `write` runs."""

    def lost(self) -> None:
        """Another instance holds the session now: this copy ends, and writes nothing more."""

    def snapshot(self) -> SessionSnapshot:
        """All of it, for a journal that has lost what it had or could not be written for a while."""


class Held(Protocol):
    """A session that this host holds."""

    @property
    def loaded(self) -> SessionSnapshot:
        """As it was when it was taken up: its last turns, at most `TURNS_LOADED`, those that have not ended
        among them, and its last events, within `FRAMES_LOADED` and `FRAME_BYTES_LOADED`."""

    def keep(self, copy: Copy) -> None:
        """From now on the journal calls back `copy`. To be called before `write`."""

    def write(self, *changes: Change) -> None:
        """Hands changes over, in their order; those of one call are committed together. Never waits."""

    async def settled(self) -> None:
        """Returns when all that was handed over is committed, or the journal is degraded."""

    async def frames(self, first: int, last: int, *, max_bytes: int) -> Sequence[StoredFrame]:
        """Committed events from `first` to `last`, the oldest first, as many as fit, at least one if there
        is any. Where events are missing, those after them."""

    async def release(self) -> None:
        """Gives the session up once all is committed: any instance may take it up at once."""


class HeldElsewhere(Exception):
    """Another instance holds the session, and lives."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder  #: its instance id


class Unreachable(Exception):
    """The journal cannot be read or written just now: whether there is such a session is not known."""


class SessionNameTaken(Exception):
    """A session of this owner has the name; `session_id` is to be taken up."""

    def __init__(self, session_id: str) -> None:
        super().__init__(session_id)
        self.session_id = session_id


TURNS_LOADED = 1024  #: as many as the entries of a history, if none had an answer, and those that wait
FRAMES_LOADED = 256  #: what a client asks for that comes back soon; 4096 took 12 ms
FRAME_BYTES_LOADED = 2**20


MayOwn = Callable[[str | None], bool]


class SessionJournal(Protocol):
    """Where the sessions of a service are kept. A host has one, and calls it from its trio thread."""

    @property
    def durable(self) -> bool:
        """Whether sessions outlive the process."""

    @property
    def degraded(self) -> str | None:
        """Why nothing is kept just now; None when all is well. It is tried again all the time."""

    @property
    def set_aside(self) -> Sequence[str]:
        """The files of sessions that could not be read and were given another name, the newest first."""

    async def create(self, record: SessionRecord) -> Held:
        """A new session of this host, committed with its first changes. Raises `SessionNameTaken`."""

    async def take_up(self, session_id: str, may_own: MayOwn | None = None) -> Held | None:
        """Claims a session; None where there is none, or `may_own` is false of its owner.

        One that has ended is not claimed: its `loaded.record` says how it ended. Raises `HeldElsewhere`,
        `Unreachable`.
        """

    async def named(self, owner: str | None, name: str) -> str | None:
        """The id of the owner's session of that name that has not ended. Raises `Unreachable`."""

    def keep_link(self, link_id: str, copy: LinkCopy) -> HeldLink:
        """A connection that this host serves, or goes on with."""

    async def take_link(self, link_id: str) -> str | None:
        """What is kept of a connection, which this host alone may go on with now; None where nothing is.

        Raises `Unreachable`.
        """

    async def unfinished(self) -> Sequence[str]:
        """Ids of the sessions with turns that have not ended and which no living instance holds."""
