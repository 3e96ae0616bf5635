"""What a manager and the workers that serve its gateway tell each other: JSON lines on a unix socket.

A worker that comes begins with `Hello`. Then it says what it has: the sessions that are open, those that
ended while nobody listened, what it remembers; and last `Declared`, its seats. The manager answers the
`Hello` with a `Table`, and tells of each change. From then on both talk as things happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from json import dumps

import trio
from attrs import field, frozen

from ..codec import from_plain, parse_json, to_plain
from ..core.routing import RoutingTable
from ..core.shared_seats import Ask, Gave, Grant, SeatReport, Took, Withdraw
from ..errors import InvalidRequest
from ..models import Connection, SessionEnd, Token
from .access import Identity

PROTOCOL = 1
BEAT_S = 1.0  #: the longest that a manager says nothing
STALL_S = 10.0  #: whoever takes nothing for so long does not read
SILENCE_S = 5.0  #: a manager that says nothing for so long does not answer; a busy one is late by less

# What a worker says, besides `SeatReport`s.


@frozen
class Hello:
    worker_id: str
    host: str
    port: int
    tls: bool
    slot: int
    options: str  #: equal for those that do the same
    guest: bool  #: it belongs to a terminal of its own: no manager started it or starts it again
    protocol: int = PROTOCOL


@frozen
class Opened:
    connection: Connection


@frozen
class Closed:
    end: SessionEnd


@frozen
class Refused:
    """A client that was not let in, and the code that says why."""

    code: str


@frozen
class Figures:
    """What has changed of a session since they were last told: what it has from `Connection`."""

    connection_id: str
    idle_s: float
    bytes_from_client: int
    bytes_to_client: int
    messages_from_client: int
    messages_to_client: int


@frozen
class Declared:
    """All that there is to tell of the past has been told."""

    seats: Mapping[str, int]


@frozen
class Applied:
    """Every client from now on is routed by the table of that version."""

    version: int


@frozen
class Redeem:
    """Whose ticket is this?"""

    number: int
    ticket: str = field(repr=False)


# What a manager says, besides `Grant`s.


@frozen
class Table:
    version: int
    table: RoutingTable
    tokens: tuple[Token, ...]  #: with digests, never keys


@frozen
class Others:
    """Seats that all others have, by instance id; the manager's heartbeat too."""

    seats: Mapping[str, int]


@frozen
class Drain:
    instance_id: str
    timeout_s: float
    for_good: bool  #: clients are told 1001, not to come back


@frozen
class Disconnect:
    connection_id: str
    code: int
    reason: str


@frozen
class Redeemed:
    number: int
    identity: Identity | None


@frozen
class End:
    """Close the sessions with 1001, and exit."""


# What both say.


@frozen
class Remembered:
    """Where each named session was last opened."""

    holders: Mapping[str, str]


Report = Hello | Opened | Closed | Refused | Figures | Declared | Applied | Redeem | Remembered | SeatReport
Order = Table | Others | Drain | Disconnect | Redeemed | End | Remembered | Grant

_REPORTS = (
    Hello,
    Opened,
    Closed,
    Refused,
    Figures,
    Declared,
    Applied,
    Redeem,
    Remembered,
    Took,
    Gave,
    Ask,
    Withdraw,
)
_ORDERS = (Table, Others, Drain, Disconnect, Redeemed, End, Remembered, Grant)
_BY_NAME = {kind.__name__: kind for kind in (*_REPORTS, *_ORDERS)}


def encode(message: Report | Order) -> bytes:
    words = [type(message).__name__, to_plain(message)]
    return dumps(words, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def decode_report(line: bytes) -> Report:
    """Raises `InvalidRequest` for what no worker says."""
    message = _decoded(line)
    if not isinstance(message, _REPORTS):
        raise InvalidRequest(f"a worker does not say {type(message).__name__}")
    return message


def decode_order(line: bytes) -> Order:
    """Raises `InvalidRequest` for what no manager says."""
    message = _decoded(line)
    if not isinstance(message, _ORDERS):
        raise InvalidRequest(f"a manager does not say {type(message).__name__}")
    return message


def _decoded(line: bytes) -> object:
    match parse_json(line):
        case [str(name), data] if name in _BY_NAME:
            return from_plain(data, _BY_NAME[name])
    raise InvalidRequest("this is none of the messages that workers and managers exchange")


def remembered(known: Mapping[str, str]) -> Iterator[Remembered]:
    """All of it, in pieces that are quickly read."""
    items = iter(known.items())
    while piece := dict(islice(items, 1000)):
        yield Remembered(piece)


class Lines:
    """Cuts what comes into lines."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete by now."""
        first, *more = data.split(b"\n")
        self._rest.append(first)
        if not more:
            return []
        complete = [b"".join(self._rest), *more[:-1]]
        self._rest = [more[-1]]
        return complete


class Outbox:
    """What is to be said on one connection, in order; what comes together goes out together."""

    def __init__(self) -> None:
        self._pending: list[bytes] = []
        self._more = trio.Event()
        self._idle = trio.Event()
        self._idle.set()

    def put(self, *messages: Report | Order) -> None:
        self.put_lines(*map(encode, messages))

    def put_lines(self, *lines: bytes) -> None:
        self._pending += lines
        if self._pending:
            self._more.set()
            if self._idle.is_set():
                self._idle = trio.Event()

    async def deliver(self, stream: trio.abc.SendStream) -> None:
        """Until cancelled. Raises `trio.BrokenResourceError`: the other side has gone, or does not read."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            data, self._pending = b"".join(self._pending), []
            with trio.move_on_after(STALL_S) as patience:
                await stream.send_all(data)
            if patience.cancelled_caught:
                raise trio.BrokenResourceError("the other side does not read")
            if not self._pending:
                self._idle.set()

    async def all_said(self) -> None:
        """Returns when everything so far has been handed to the socket."""
        await self._idle.wait()
