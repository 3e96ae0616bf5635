"""The messages between a manager and the workers that serve its gateway: JSON lines, reports and orders.

A worker that connects begins with `Hello`. Then it says what it has: the connections that are open, those
that ended while no manager was connected, what it remembers; and last `Declared`, its seats. The manager
answers the `Hello` with a `Table`, and sends each change. From then on both send as things happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from json import dumps
from typing import get_args

from attrs import field, fields, frozen

from ..codec import from_plain, parse_json, to_plain
from ..core.routing import Gate, RoutingTable
from ..core.shared_seats import Grant, SeatReport
from ..core.table_change import TableChange
from ..errors import InvalidRequest
from ..models import Connection, ConnectionEnd, Token, TokenPolicy
from ..proxy import Identity

VERSION = 10
"""9 had no `RoutingTable.moved`;
8 had no `Backend.node_id` and `.journaled`, no `RoutingTable.gates` and `.nodes`, no `Hello.pid` and
`.gate`, no `Renew` and `Renewed`, no `TableChange`, and `OtherSeats` in place of `SeatChanges`;
7 had no `Wake`, no `Changes`, and no backend that is asleep;
6 had no `RoutingTable.portless_services`; 5 had no `RoutingTable.http_services`;
4 had no `RoutingTable.own_pages`; 3 had no `Backend.resume_within`;
2 had `Backend.session_timeout`; 1 had no `Hello.version`, no token policy and no tokens of instances."""
HEARTBEAT_S = 1.0  #: the longest that a manager sends nothing
SILENCE_S = 5.0  #: a manager that sends nothing for so long counts as gone; a busy one is late by less

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
    version: int = 1  #: the `VERSION` that it speaks
    pid: int = 0  #: on its machine
    gate: Gate | None = None  #: where gateways of other nodes reach the instances of its node, by it


@frozen
class Opened:
    """Of a connection that is known: another instance goes on with it."""

    connection: Connection


@frozen
class Closed:
    end: ConnectionEnd


@frozen
class Refused:
    """A client that was not let in, and the code that says why."""

    code: str


@frozen
class Progress:
    """The fields of a `Connection` that change while it lives."""

    connection_id: str
    idle_s: float
    bytes_from_client: int
    bytes_to_client: int
    messages_from_client: int
    messages_to_client: int

    @classmethod
    def of(cls, connection: Connection) -> Progress:
        return cls(**{attribute.name: getattr(connection, attribute.name) for attribute in fields(cls)})


@frozen
class Declared:
    """Ends what a worker says first: the seats that its connections occupy, by instance id."""

    seats: Mapping[str, int]


@frozen
class Applied:
    """The worker routes its clients by the table of that version from now on."""

    version: int


@frozen
class Redeem:
    """Asks whose ticket it is, and uses it up; `Redeemed` answers, with the same number."""

    number: int
    ticket: str = field(repr=False)


@frozen
class Renew:
    """Asks for the lease of a worker on a node (`core.leases`); `Renewed` answers, with the same number."""

    number: int


@frozen
class Wake:
    """A client waits for a service that is asleep."""

    service_id: str


# What a manager says, besides `Grant`s.


@frozen
class Table:
    version: int
    table: RoutingTable
    tokens: tuple[Token, ...]  #: with digests, never keys
    token_policy: TokenPolicy
    left_open: frozenset[str]  #: ids of revoked tokens whose connections go on


@frozen
class Changes:
    """How the table of `version` differs from that of the version `since`."""

    since: int
    version: int
    change: TableChange


@frozen
class SeatChanges:
    """Seats that all others have, by instance id, as far as that has changed since it was last said.

    It is the manager's heartbeat too (`HEARTBEAT_S`).
    """

    seats: Mapping[str, int]
    whole: bool = False  #: there are no others: the first one of a link


@frozen
class Drain:
    instance_id: str
    timeout_s: float
    for_good: bool  #: clients get 1001: they shall not come back
    idle_s: float | None = None  #: silence that makes a connection idle; None: the instance ends them itself


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
class Renewed:
    number: int


@frozen
class End:
    """Close the connections with 1001, and exit."""


# What both say.


@frozen
class Remembered:
    """Where each named session was last opened, by the digest of its id (`core.affinity`)."""

    holders: Mapping[str, str]


Report = (
    Hello
    | Opened
    | Closed
    | Refused
    | Progress
    | Declared
    | Applied
    | Redeem
    | Renew
    | Wake
    | Remembered
    | SeatReport
)
Order = Table | Changes | SeatChanges | Drain | Disconnect | Redeemed | Renewed | End | Remembered | Grant

_BY_NAME = {kind.__name__: kind for kind in get_args(Report | Order)}


def encode(message: Report | Order) -> bytes:
    words = [type(message).__name__, to_plain(message)]
    return dumps(words, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def decode_report(line: bytes) -> Report:
    """Raises `InvalidRequest` for what no worker says."""
    message = _decoded(line)
    if not isinstance(message, Report):
        raise InvalidRequest(f"a worker does not send {type(message).__name__}")
    return message


def decode_order(line: bytes) -> Order:
    """Raises `InvalidRequest` for what no manager says."""
    message = _decoded(line)
    if not isinstance(message, Order):
        raise InvalidRequest(f"a manager does not send {type(message).__name__}")
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
