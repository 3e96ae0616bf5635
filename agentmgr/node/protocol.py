"""The messages between a manager and the daemon of a node: JSON lines.

A daemon that connects says `Hello`, the state of each of its instances (`Has`), what else it has to say again
at each link, and `Complete`. The manager answers the `Hello` with `Welcome` or `Unwelcome`. From then on both
speak as things happen:

* `[name, data]`: a `Report` of the daemon, a `Directive` of the manager;
* `[number, name, data]`: an `Order` of the manager, and the daemon's `Answer` to it.

An order has a number that no other order of any manager has. It is asked again on each new link until it is
answered, and done once: the daemon keeps an answer until the manager says `Settled`. Orders are begun in the
order in which they were given.

State, not events: what a daemon says of an instance is always all that there is to say, so a message that was
lost with its link is made up for by the next link's `Has`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from json import dumps
from typing import Generic, TypeVar, get_args

from attrs import Factory, evolve, field, frozen

from ..codec import from_answer, parse_json, to_plain
from ..core.health import ProbeResult
from ..core.leases import LEASE_S as SEATS_LEASE_S
from ..core.restart import Cause, Exit
from ..core.scaling import Turns
from ..errors import InvalidRequest
from ..generation import Generation
from ..models import ForkServerState, InstanceRecord, ServiceSpec, Usage
from ..settings import Settings
from ..supervisor.launcher import GpuIds
from ..supervisor.log_window import LogMatches, LogWindow
from .bundles import BundleRefused, HasBundle, PutBundle, Shipment
from .checkup import Examine, Examined
from .logs import (
    LogExtent,
    LogKept,
    LogLines,
    LogLook,
    LogNext,
    LogPiece,
    LogRead,
    LogSearch,
    LogsMoved,
    LogTail,
    MoveLogs,
)
from .session_archives import ReadSessions, SessionsRead
from .session_moves import MoveAnswer, MoveOrder

VERSION = 1
"""Of a daemon and a manager that understand each other. New fields with defaults do not change it."""
LEASE_S = 30.0
"""A daemon without a link for so long ends the instances whose `on_manager_death` is `die`."""
FIGURES_EVERY_S = 10.0
_STATES_IN_ONE = 50  #: of a `Has`: each is read in one go, and must not hold up the manager

# What a daemon says.


@frozen
class Facts:
    """What a node is, as its daemon says."""

    node_id: str  #: its own, for ever
    host_name: str
    address: str = ""  #: where other nodes reach it
    labels: Mapping[str, str] = Factory(dict)
    resources: Mapping[str, float] = Factory(dict)
    boot_id: str = ""
    agentmgr: str = ""  #: versions
    python: str = ""
    daemon_id: str = ""  #: of this run of the daemon


@frozen
class Hello:
    facts: Facts
    version: int  #: the `VERSION` that it speaks
    now: datetime  #: by its clock
    obeys: Generation | None = None  #: the newest manager that it has obeyed


@frozen
class End:
    """How a child ended, and what it left, for people."""

    exit: Exit
    last_words: str = ""
    output: str = ""  #: as `Child.last_output`
    out_of_memory: str | None = None
    misfortune: tuple[str, ...] = ()  #: the name of a `Cause` and a reason, or nothing


@frozen
class InstanceState:
    """All that is to be said of one child of the node, from its launch until its slot is closed."""

    instance_id: str
    token: str = field(repr=False)
    completes: bool
    ready: bool = False
    ready_unasked: bool = False  #: as in its record
    serves: bool = False
    said: str | None = None
    health: ProbeResult | None = None  #: of its last check; None before the first
    knows_idle: bool | None = (
        None  #: whether it knows when a session is idle; None: it was not asked to drain
    )
    gpus: tuple[str, ...] = ()  #: as in its record
    end: End | None = None  #: it has exited
    over: bool = False  #: and none of its descendants is left


@frozen
class Has:
    """States of instances, after a `Hello`."""

    states: tuple[InstanceState, ...]


@frozen
class Complete:
    """Each instance of the node was named: all others are not there."""


@frozen
class Changed:
    state: InstanceState


@frozen
class Figures:
    """Every `FIGURES_EVERY_S`: what all its instances use, and what is wrong with the node."""

    usage: Mapping[str, Usage]  #: the latest sample, by instance id
    sessions: Mapping[str, int] = Factory(dict)  #: conversations in memory, by instance id
    quiet_s: Mapping[str, float] = Factory(dict)  #: by instance id, as in `ProbeResult`
    troubles: tuple[str, ...] = ()
    fork_servers: tuple[ForkServerState, ...] = ()
    preloaded: Mapping[str, str] = Factory(dict)  #: by service id


@frozen
class GatewayTroubles:
    """Why gateways that the node is to keep do not run, for people; none where all do."""

    reasons: tuple[str, ...]


@frozen
class Leaving:
    """The daemon ends in order; what runs on the node lives on, if the machine does."""


# What a manager says that has no answer.


@frozen
class Welcome:
    manager_id: str  #: of one run of a manager
    open: tuple[str, ...]  #: the numbers of the orders that it still waits for
    generation: Generation | None = None  #: of the manager, as of all that has nodes


@frozen
class Unwelcome:
    """The manager closes the link after it."""

    reason: str
    forgotten: bool = False  #: it is no node of this manager, which runs what it ran elsewhere


@frozen
class Settled:
    """The answer has arrived."""

    number: str


@frozen
class Cancel:
    """No answer is waited for any more. What was done is not undone."""

    number: str


# Orders.


@frozen
class Launch:
    """Answered by `Launched`, `CannotStart` or `NeedsBundle`.

    An earlier child of the same instance that lives is ended before.
    """

    try_id: str  #: what this one has launched is not launched again, by no later daemon either
    instance_id: str
    position: int
    spec: ServiceSpec  #: with what its env file says in `env`
    check_interval_s: float  #: where its configuration has none
    shipment: Shipment | None = None  #: what it runs in, where that was sent along
    gpus: GpuIds = None


@frozen
class EndChild:
    """Ends it and its descendants. Answered by `Ended`."""

    instance_id: str
    token: str = field(repr=False)
    grace_s: float


@frozen
class Kill:
    """Makes `EndChild` kill without waiting, now or later."""

    instance_id: str
    token: str = field(repr=False)


@frozen
class EndStray:
    """Drains, ends and closes what the manager has replaced, or knows nothing of."""

    instance_id: str
    token: str = field(repr=False)


@frozen
class CloseSlot:
    """The instance will not be launched here again; with `lease` its port is kept for it."""

    instance_id: str
    lease: bool = False


@frozen
class EndLease:
    instance_id: str


@frozen
class ForgetService:
    service_id: str


@frozen
class Drain:
    """As `Child.drain`; whether it knows when a session is idle is in its state."""

    instance_id: str
    token: str = field(repr=False)
    code: int


@frozen
class ChangeCloseCode:
    instance_id: str
    token: str = field(repr=False)
    code: int


@frozen
class AskDraining:
    """Answered by `Draining`."""

    instance_id: str
    token: str = field(repr=False)


@frozen
class AskTurns:
    """Answered by `TurnsNow`."""

    instance_id: str
    token: str = field(repr=False)


@frozen
class AskUnready:
    """Answered by `Unready`."""

    instance_id: str
    token: str = field(repr=False)


@frozen
class Check:
    """Probes it now. Answered by `Checked`."""

    instance_id: str
    token: str = field(repr=False)
    timeout_s: float


@frozen
class GatewayOrder:
    """One gateway worker that a node is to keep; what depends on the node its daemon adds."""

    settings: Settings
    address: str  #: of the node
    port: int  #: of its clients
    listens: bool = True  #: False: it has a gate only, and no clients of its own
    lease_s: float = SEATS_LEASE_S


@frozen
class KeepGateways:
    """The gateways that the node is to keep, and no others. Answered by `Done` when that is written down."""

    gateways: tuple[GatewayOrder, ...]
    at_least: bool = False  #: those that it keeps already may stay, if there are any


@frozen
class AwaitGateway:
    """Answered by `Done` when that worker's process has ended."""

    worker_id: str


@frozen
class KillGateway:
    """Kills a worker that does not answer. Answered by `Done` when it has ended."""

    worker_id: str


# Answers.


@frozen
class Done:
    """It was done, or there was nothing to do."""


@frozen
class Failed:
    """It could not be done; for people."""

    reason: str


@frozen
class Launched:
    record: InstanceRecord
    unenforced: tuple[str, ...]
    completes: bool


@frozen
class CannotStart:
    cause: str  #: the name of a `Cause`
    reason: str


@frozen
class NeedsBundle:
    """The node does not have it: it has to be sent before the launch."""

    digest: str


@frozen
class Ended:
    end: End


@frozen
class Draining:
    is_draining: bool


@frozen
class TurnsNow:
    turns: Turns | None


@frozen
class Unready:
    seen: str
    last_words: str
    misfortune: tuple[str, ...] = ()  #: as in `End`


@frozen
class Checked:
    result: ProbeResult


Report = Leaving | Hello | Has | Complete | Changed | Figures | GatewayTroubles
Directive = Welcome | Unwelcome | Settled | Cancel
Order = (
    Launch
    | EndChild
    | Kill
    | EndStray
    | CloseSlot
    | EndLease
    | ForgetService
    | Drain
    | ChangeCloseCode
    | AskDraining
    | AskTurns
    | AskUnready
    | Check
    | PutBundle
    | KeepGateways
    | AwaitGateway
    | KillGateway
    | LogTail
    | LogNext
    | LogLook
    | LogSearch
    | LogExtent
    | LogRead
    | MoveLogs
    | ReadSessions
    | MoveOrder
    | Examine
)
Answer = (
    Done
    | Failed
    | Launched
    | CannotStart
    | NeedsBundle
    | Ended
    | Draining
    | TurnsNow
    | Unready
    | Checked
    | HasBundle
    | BundleRefused
    | LogLines
    | LogPiece
    | LogKept
    | LogsMoved
    | LogWindow
    | LogMatches
    | SessionsRead
    | MoveAnswer
    | Examined
)

Body = TypeVar("Body")


@frozen
class Numbered(Generic[Body]):
    number: str
    body: Body


@frozen
class Unknown:
    """A message of a newer version, which has more of them."""

    name: str
    number: str | None = None  #: of an order or an answer


_SAID = {kind.__name__: kind for kind in get_args(Report | Directive)}
_NUMBERED = {kind.__name__: kind for kind in get_args(Order | Answer)}


Sent = Report | Numbered[Answer] | Unknown  #: by a daemon
Told = Directive | Numbered[Order] | Numbered[Unknown] | Unknown  #: by a manager


def encode(message: Sent | Told) -> bytes:
    words: list[object] = [type(message).__name__, to_plain(message)]
    if isinstance(message, Numbered):
        words = [message.number, type(message.body).__name__, to_plain(message.body)]
    return dumps(words, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def decode_report(line: bytes) -> Sent:
    """What a daemon says. Raises `InvalidRequest`."""
    match _decoded(line):
        case Numbered(number, body) if isinstance(body, Answer):
            return Numbered(number, body)
        case Unknown(name) as message:
            if message.number is not None:
                return Numbered(message.number, Failed(f"it has answered {name}, which is not known here"))
            return message
        case message if isinstance(message, Report):
            return message
    raise InvalidRequest("a node daemon does not send this")


def decode_order(line: bytes) -> Told:
    """What a manager says. Raises `InvalidRequest`."""
    match _decoded(line):
        case Numbered(number, body) if isinstance(body, Order):
            return Numbered(number, body)
        case Unknown() as message:
            return message if message.number is None else Numbered(message.number, message)
        case message if isinstance(message, Directive):
            return message
    raise InvalidRequest("a manager does not send this to a node daemon")


def _decoded(line: bytes) -> object:
    # One of a newer version may say more than is known here.
    match parse_json(line):
        case [str(name), data] if name in _SAID:
            return from_answer(data, _SAID[name])
        case [str(number), str(name), data] if name in _NUMBERED:
            return Numbered(number, from_answer(data, _NUMBERED[name]))
        case [str(name), dict()]:
            return Unknown(name)
        case [str(number), str(name), dict()]:
            return Unknown(name, number)
    raise InvalidRequest("this is none of the messages that managers and node daemons exchange")


def in_pieces(states: tuple[InstanceState, ...]) -> list[Has]:
    rest = iter(states)
    return [Has(piece) for piece in iter(lambda: tuple(islice(rest, _STATES_IN_ONE)), ())]


def misfortune_of(words: tuple[str, ...]) -> tuple[Cause, str] | None:
    match words:
        case (name, reason) if name in Cause.__members__:
            return Cause[name], reason
    return None


def unchanging(result: ProbeResult | None) -> ProbeResult | None:
    """What of a check is news when it differs: not how long it took, and for how long nothing went on."""
    return None if result is None else evolve(result, latency_s=None, quiet_s=None)
